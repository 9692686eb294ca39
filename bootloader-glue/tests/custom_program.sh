#!/bin/sh
# An integrator's program as the tests of the custom backend have it: two files in a folder.
#   state      ORDER A B: the group that is tried first, and for each group good, bad or the tries that are left
#   fallback   GROUP: a complete group, for the time the state cannot be read
# Each is written whole beside the old one, synced, and put in its place.
set -eu
dir=$(dirname "$0")
input=$(cat)

field() {
    printf '%s' "$input" | sed -n "s/.*\"$1\":\"*\([a-z0-9]*\).*/\1/p"
}

put() {
    if [ "$(cat "$dir/$1" 2>/dev/null)" != "$2" ]; then
        printf '%s\n' "$2" >"$dir/$1.new"
        sync "$dir/$1.new"
        mv "$dir/$1.new" "$dir/$1"
    fi
}

status() {
    case $1 in
        good) printf '{"status":"good"}' ;;
        bad) printf '{"status":"unbootable"}' ;;
        0) printf '{"status":"exhausted"}' ;;
        *) printf '{"status":"trial","tries_left":%s}' "$1" ;;
    esac
}

other() {
    if [ "$1" = a ]; then echo b; else echo a; fi
}

# Reads the state into order, a and b; whole tells whether it could be read.
state=$(tr -d '\000' <"$dir/state" 2>/dev/null || true)
if printf '%s\n' "$state" | LC_ALL=C grep -qx '[ab] \(good\|bad\|[0-9]\) \(good\|bad\|[0-9]\)'; then
    whole=intact
    order=${state%% *}
    b=${state##* }
    a=${state#* }
    a=${a% *}
else
    whole=damaged
    order=$(cat "$dir/fallback")
    a=bad
    b=bad
    eval "$order=good"
fi

booted=$(field booted)
opposite=$(other "$booted")
if [ "$1" != view ] && [ "$whole" = damaged ]; then
    a=bad
    b=bad
    eval "$booted=good"
fi
case $1 in
    view)
        eval "first=\$$order"
        case $first in bad | 0) order=$(other "$order") ;; esac
        printf '{"settings":"%s","primary":"%s","a":%s,"b":%s,"more":[1]}\n' "$whole" "$order" "$(status "$a")" "$(status "$b")"
        exit
        ;;
    mark-unbootable)
        eval "$opposite=bad"
        put fallback "$booted"
        put state "$booted $a $b"
        ;;
    activate)
        eval "$opposite=$(field tries)"
        put fallback "$booted"
        put state "$opposite $a $b"
        ;;
    mark-good)
        eval "$booted=good"
        put state "$booted $a $b"
        put fallback "$booted"
        ;;
    roll-back)
        eval "$booted=bad; $opposite=good"
        put state "$opposite $a $b"
        put fallback "$opposite"
        ;;
    *)
        echo "what is $1?" >&2
        exit 2
        ;;
esac
