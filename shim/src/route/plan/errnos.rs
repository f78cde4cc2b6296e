//! The errno values a rule may answer with: those that bind(2), connect(2) and sendto(2) know.

/// Names and numbers.
const ERRNOS: [(&str, i32); 14] = [
    ("EACCES", libc::EACCES),
    ("EADDRINUSE", libc::EADDRINUSE),
    ("EADDRNOTAVAIL", libc::EADDRNOTAVAIL),
    ("EAFNOSUPPORT", libc::EAFNOSUPPORT),
    ("ECONNREFUSED", libc::ECONNREFUSED),
    ("EHOSTDOWN", libc::EHOSTDOWN),
    ("EHOSTUNREACH", libc::EHOSTUNREACH),
    ("EIO", libc::EIO),
    ("ENETDOWN", libc::ENETDOWN),
    ("ENETUNREACH", libc::ENETUNREACH),
    ("ENOBUFS", libc::ENOBUFS),
    ("ENODEV", libc::ENODEV),
    ("EPERM", libc::EPERM),
    ("ETIMEDOUT", libc::ETIMEDOUT),
];

/// What a refused call answers if the rule names nothing else: as a firewall's reject.
pub(super) const REFUSED: i32 = libc::EACCES;

/// The number of a name.
pub(super) fn number(name: &str) -> Option<i32> {
    let found = ERRNOS.iter().find(|(known, _)| *known == name)?;
    Some(found.1)
}

/// All names, for a person.
pub(super) fn names() -> String {
    ERRNOS.map(|(name, _)| name).join(", ")
}
