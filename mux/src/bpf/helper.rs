//! The helper functions a parser program may call, by the kernel's numbers and names.

/// A helper this VM implements. The discriminants are the kernel's `BPF_FUNC_*` numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Helper {
    MapLookupElem,
    MapUpdateElem,
    MapDeleteElem,
    KtimeGetNs,
    GetPrandomU32,
    GetSmpProcessorId,
    SkbLoadBytes,
    GetSocketCookie,
    GetSocketUid,
    SkbLoadBytesRelative,
    KtimeGetBootNs,
    KtimeGetCoarseNs,
}

impl Helper {
    /// The helper with this number.
    pub(crate) const fn from_number(number: i64) -> Option<Self> {
        Some(match number {
            1 => Self::MapLookupElem,
            2 => Self::MapUpdateElem,
            3 => Self::MapDeleteElem,
            5 => Self::KtimeGetNs,
            7 => Self::GetPrandomU32,
            8 => Self::GetSmpProcessorId,
            26 => Self::SkbLoadBytes,
            46 => Self::GetSocketCookie,
            47 => Self::GetSocketUid,
            68 => Self::SkbLoadBytesRelative,
            125 => Self::KtimeGetBootNs,
            160 => Self::KtimeGetCoarseNs,
            _ => return None,
        })
    }
}

/// `get_socket_cookie` of a buffer without a socket.
pub(crate) const SOCKET_COOKIE: u64 = 0;
/// `get_socket_uid` of a buffer without a socket: the overflow uid.
pub(crate) const SOCKET_UID: u64 = 65_534;
