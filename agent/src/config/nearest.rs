//! The known word that was probably meant.

/// The one of `known` nearest to `written`, if it is near enough for a typing mistake.
pub(super) fn nearest<'a>(written: &str, known: &[&'a str]) -> Option<&'a str> {
    let plain = |word: &str| word.to_lowercase().replace('-', "_");
    let written = plain(written);
    let (distance, word) = known.iter().map(|word| (distance(&written, &plain(word)), *word)).min()?;
    (distance <= word.chars().count() / 3).then_some(word)
}

/// How many characters must be put in, taken out, replaced or swapped with their neighbour.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=to.len()).collect();
    let mut previous = None;
    for (row, here) in from.chars().enumerate() {
        let mut line = vec![row.saturating_add(1)];
        for (column, there) in to.iter().enumerate() {
            let at = |line: &[usize], column: usize| line.get(column).copied().unwrap_or(usize::MAX / 2);
            let replaced = at(&last, column) + usize::from(here != *there);
            let mut best = replaced.min(at(&last, column + 1) + 1).min(at(&line, column) + 1);
            let swapped = column > 0 && previous == Some(*there) && to.get(column - 1) == Some(&here);
            if swapped {
                best = best.min(at(&before_last, column - 1) + 1);
            }
            line.push(best);
        }
        before_last = std::mem::replace(&mut last, line);
        previous = Some(here);
    }
    last.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typing_mistake_finds_its_word_and_another_word_does_not() {
        let known = ["settle", "interval", "deadline", "passes", "check_timeout", "units"];
        assert_eq!(nearest("deadlnie", &known), Some("deadline"));
        assert_eq!(nearest("check-timeout", &known), Some("check_timeout"));
        assert_eq!(nearest("Unit", &known), Some("units"));
        assert_eq!(nearest("colour", &known), None);
        assert_eq!(nearest("c", &["a", "b"]), None);
    }
}
