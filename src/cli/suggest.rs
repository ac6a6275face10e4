//! "Did you mean …?"

/// Returns those of `known` that resemble `given` most, at most three.
pub(crate) fn nearest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let limit = 1 + given.chars().count() / 4;
    let given_last = given.rsplit('.').next().unwrap_or(given);
    let mut near: Vec<(usize, &str)> = known
        .into_iter()
        .filter_map(|name| {
            let distance = distance(given, name);
            // The right word below the wrong family is as good as one slip of a key.
            let same_word = given_last.len() > 2 && name.rsplit('.').next() == Some(given_last);
            if same_word { Some((distance.min(1), name)) } else { (distance <= limit).then_some((distance, name)) }
        })
        .collect();
    near.sort_unstable();
    let best = near.first().map(|(distance, _)| *distance);
    near.into_iter().filter(|(distance, _)| Some(*distance) == best).take(3).map(|(_, name)| name).collect()
}

/// Counts the characters to insert, delete, replace or swap with their neighbour (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = vec![];
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replace = above[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replace.min(above[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const METHODS: [&str; 6] =
        ["instance.ping", "instance.info", "instance.list", "session.list", "session.get", "message.send"];

    #[track_caller]
    fn check_nearest(given: &str, expected: &[&str]) {
        assert_eq!(nearest(given, METHODS), expected, "{given}");
    }

    #[test]
    fn a_slip_finds_its_method() {
        check_nearest("instance.pign", &["instance.ping"]);
        check_nearest("sesion.get", &["session.get"]);
        check_nearest("message.sned", &["message.send"]);
        check_nearest("sessions.list", &["instance.list", "session.list"]);
    }

    #[test]
    fn what_resembles_nothing_gets_no_suggestion() {
        check_nearest("frobnicate", &[]);
        check_nearest("", &[]);
    }
}
