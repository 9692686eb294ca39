# Bascule's boot settings, as U-Boot obeys them. bootloader-glue/src/uboot/mod.rs explains every variable and value.
# Packed with: mkimage -A arm64 -T script -C none -d boot.cmd boot.scr (-A x86 where U-Boot is), beside the file bascule-fallback.
#
# The names bascule_order, bascule_a and bascule_b are saved by U-Boot. All others are shell variables of this script (NAME=VALUE),
# which saveenv does not write. U-Boot looks for a variable in its environment first, so none of those names may be there.
# An empty value would not be assigned: where there is none, they say none. What U-Boot's own commands leave behind (fileaddr,
# filesize) and what the kernel is told (bootargs) is taken away before a save: it would grow an environment that is nearly full.

# Partitions of the two root slots, on the disk this script was loaded from.
setenv bascule_part_a
setenv bascule_part_b
bascule_part_a=3
bascule_part_b=4

setenv bascule_first
setenv bascule_second
setenv bascule_left
setenv bascule_go
setenv bascule_tried
setenv bascule_safe
setenv bascule_never
setenv bascule_step
setenv bascule_group
setenv bascule_part
setenv bascule_fdt
setenv bascule_file
setenv bascule_saved
bascule_first=none
bascule_second=none
bascule_tried=no
bascule_safe=none
bascule_never=none

# What the file bascule-fallback says, when it is whole: 512 bytes with a checksum and a flag, as a U-Boot with a redundant
# environment imports them. Into shell variables, so that it is not saved.
setenv bascule_fallback
setenv bascule_refused
if load ${devtype} ${devnum}:${distro_bootpart} ${kernel_addr_r} ${prefix}bascule-fallback; then
  if test "x${filesize}" = "x200"; then
    if env import -c ${kernel_addr_r} 200 bascule_fallback bascule_refused; then
      if test "x${bascule_refused}" = "xa"; then bascule_never=a; fi
      if test "x${bascule_refused}" = "xb"; then bascule_never=b; fi
      if test "x${bascule_fallback}" = "xa"; then bascule_safe=a; fi
      if test "x${bascule_fallback}" = "xb"; then bascule_safe=b; fi
      if test "${bascule_safe}" = "${bascule_never}"; then bascule_safe=none; fi
    fi
  fi
fi
setenv bascule_fallback
setenv bascule_refused

# The order, when all three variables are there.
if test "x${bascule_a}" != "x"; then
  if test "x${bascule_b}" != "x"; then
    if test "x${bascule_order}" = "xa b"; then
      bascule_first=a
      bascule_second=b
    elif test "x${bascule_order}" = "xb a"; then
      bascule_first=b
      bascule_second=a
    fi
  fi
fi
if test "${bascule_first}" = "none"; then
  echo "bascule: settings damaged"
fi

# Steps 1 and 2 do what the settings say. Steps 3 and 4 are for settings that allow neither group: the one that fallback
# names, or what loads. A group that the settings allowed and that did not load is no reason for those: it ends at U-Boot.
for bascule_step in 1 2 3 4; do
  bascule_group=none
  bascule_go=no
  bascule_left=none
  if test "${bascule_step}" = "1"; then bascule_group=${bascule_first}; fi
  if test "${bascule_step}" = "2"; then bascule_group=${bascule_second}; fi
  if test "${bascule_step}" = "1" -o "${bascule_step}" = "2"; then
    # "a" and "good" are "agood": one comparison for both groups, of which only the one whose turn it is can be equal.
    if test "${bascule_group}" = "none"; then
      bascule_go=no
    elif test "${bascule_group}" = "${bascule_never}"; then
      echo "bascule: skipping group ${bascule_group}, it is being written"
    elif test "${bascule_group}${bascule_a}" = "agood" -o "${bascule_group}${bascule_b}" = "bgood"; then
      echo "bascule: trying group ${bascule_group}, good"
      bascule_go=yes
    elif test "${bascule_group}${bascule_a}" = "a9" -o "${bascule_group}${bascule_b}" = "b9"; then bascule_left=8
    elif test "${bascule_group}${bascule_a}" = "a8" -o "${bascule_group}${bascule_b}" = "b8"; then bascule_left=7
    elif test "${bascule_group}${bascule_a}" = "a7" -o "${bascule_group}${bascule_b}" = "b7"; then bascule_left=6
    elif test "${bascule_group}${bascule_a}" = "a6" -o "${bascule_group}${bascule_b}" = "b6"; then bascule_left=5
    elif test "${bascule_group}${bascule_a}" = "a5" -o "${bascule_group}${bascule_b}" = "b5"; then bascule_left=4
    elif test "${bascule_group}${bascule_a}" = "a4" -o "${bascule_group}${bascule_b}" = "b4"; then bascule_left=3
    elif test "${bascule_group}${bascule_a}" = "a3" -o "${bascule_group}${bascule_b}" = "b3"; then bascule_left=2
    elif test "${bascule_group}${bascule_a}" = "a2" -o "${bascule_group}${bascule_b}" = "b2"; then bascule_left=1
    elif test "${bascule_group}${bascule_a}" = "a1" -o "${bascule_group}${bascule_b}" = "b1"; then bascule_left=0
    elif test "${bascule_group}${bascule_a}" = "a0" -o "${bascule_group}${bascule_b}" = "b0"; then
      echo "bascule: skipping group ${bascule_group}, exhausted"
    else
      echo "bascule: skipping group ${bascule_group}, unbootable"
    fi
    # Counted and saved before the kernel is touched: one that hangs has used its try, and one that cannot be saved is
    # not started at all.
    if test "${bascule_left}" != "none"; then
      setenv bascule_${bascule_group} ${bascule_left}
      setenv fileaddr
      setenv filesize
      bascule_saved=no
      if saveenv; then
        bascule_saved=yes
        # Where its environment is a file, U-Boot says that it was saved when the disk refused the write: so it is read back.
        for bascule_file in uboot.env uboot-redund.env; do
          if load ${devtype} ${devnum}:${distro_bootpart} ${kernel_addr_r} ${prefix}${bascule_file}; then
            if test "${bascule_saved}" = "yes"; then bascule_saved=no; fi
            setenv bascule_${bascule_group} unread
            if env import -c ${kernel_addr_r} ${filesize} bascule_${bascule_group}; then
              if test "${bascule_group}${bascule_a}" = "a${bascule_left}" -o "${bascule_group}${bascule_b}" = "b${bascule_left}"; then
                bascule_saved=seen
              fi
            fi
            setenv bascule_${bascule_group} ${bascule_left}
          fi
        done
      fi
      if test "${bascule_saved}" != "no"; then
        echo "bascule: trying group ${bascule_group}, ${bascule_left} tries left"
        bascule_go=yes
      else
        echo "bascule: skipping group ${bascule_group}, its try cannot be counted"
      fi
    fi
    if test "${bascule_go}" = "yes"; then bascule_tried=yes; fi
  elif test "${bascule_tried}" = "no"; then
    if test "${bascule_safe}" != "none"; then
      if test "${bascule_step}" = "3"; then
        echo "bascule: fallback names group ${bascule_safe}"
        bascule_group=${bascule_safe}
        bascule_go=yes
      fi
    else
      if test "${bascule_step}" = "3"; then
        echo "bascule: no fallback, trying what loads"
        bascule_group=a
      else
        bascule_group=b
      fi
      if test "${bascule_group}" != "${bascule_never}"; then bascule_go=yes; fi
    fi
  fi

  # Loads the group's kernel and starts it. Comes back only when that failed. bascule_args in the environment is the
  # board's own, such as console=ttyAMA0.
  if test "${bascule_go}" = "yes"; then
    bascule_part=${bascule_part_a}
    if test "${bascule_group}" = "b"; then bascule_part=${bascule_part_b}; fi
    setenv bascule_partuuid
    if part uuid ${devtype} ${devnum}:${bascule_part} bascule_partuuid; then
      # The system is told that it is on trial, and how many tries are left: empty where nothing is counted.
      setenv bootargs "root=PARTUUID=${bascule_partuuid} rootwait panic=-1 quiet bascule.group=${bascule_group} bascule.trial= ${bascule_args}"
      if test "${bascule_left}" != "none"; then
        setenv bootargs "root=PARTUUID=${bascule_partuuid} rootwait panic=-1 quiet bascule.group=${bascule_group} bascule.trial=${bascule_left} ${bascule_args}"
      fi
      setenv bascule_partuuid
      if load ${devtype} ${devnum}:${bascule_part} ${kernel_addr_r} /boot/vmlinuz; then
        setenv bascule_kernel_size ${filesize}
        bascule_fdt=${fdtcontroladdr}
        if test "x${fdtfile}" != "x"; then
          if load ${devtype} ${devnum}:${bascule_part} ${fdt_addr_r} /boot/dtbs/${fdtfile}; then bascule_fdt=${fdt_addr_r}; fi
        fi
        # Each U-Boot knows the one of its processor; the others are unknown commands, which fail.
        booti ${kernel_addr_r} - ${bascule_fdt} || bootz ${kernel_addr_r} - ${bascule_fdt} || zboot ${kernel_addr_r} ${bascule_kernel_size}
        setenv bascule_kernel_size
      fi
    fi
    setenv bootargs
    echo "bascule: group ${bascule_group} did not load"
  fi
done
echo "bascule: recovery, no group could be started"
