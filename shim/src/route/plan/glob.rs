//! Patterns of program names.

/// Whether `pattern` names the program at `path`. A pattern with a slash is one of the whole path, any
/// other of the file's name.
pub(super) fn names(pattern: &str, path: &[u8]) -> bool {
    let name = path.rsplit(|b| *b == b'/').next().unwrap_or(path);
    let text = if pattern.contains('/') { path } else { name };
    matches(pattern.as_bytes(), text)
}

/// `*` stands for any bytes, slashes too, `?` for one byte. Linear but for the last `*`, to which alone
/// it ever has to return.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where to go on when what follows the last `*` does not fit: after it, and one byte further.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        match (pattern.get(p), text.get(t)) {
            (Some(b'*'), _) => {
                p += 1;
                retry = Some((p, t));
            }
            (Some(b'?'), Some(_)) => (p, t) = (p + 1, t + 1),
            (Some(a), Some(b)) if a == b => (p, t) = (p + 1, t + 1),
            (None, None) => return true,
            (_, _) => match retry {
                Some((after, at)) if at < text.len() => {
                    (p, t) = (after, at + 1);
                    retry = Some((after, at + 1));
                }
                _ => return false,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_names_and_paths_match_paths() {
        assert!(names("nginx", b"/usr/sbin/nginx"));
        assert!(!names("ngin", b"/usr/sbin/nginx"));
        assert!(names("/usr/*/nginx", b"/usr/sbin/nginx"));
        assert!(!names("/opt/*", b"/usr/sbin/nginx"));
        assert!(names("redis-*", b"/usr/bin/redis-server"));
        assert!(names("python3.??", b"/usr/bin/python3.11"));
        assert!(!names("python3.??", b"/usr/bin/python3.9"));
    }

    #[test]
    fn stars_go_back_as_far_as_needed() {
        assert!(matches(b"a*b*c", b"a_b_b_c_c"));
        assert!(!matches(b"a*b*c", b"a_b_b_c_d"));
        assert!(matches(b"*", b""));
        assert!(matches(b"**a", b"aaa"));
        assert!(!matches(b"", b"a"));
        let long = vec![b'a'; 4096];
        assert!(!matches(b"*a*a*a*a*a*b", &long));
    }
}
