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

/// What a helper takes in a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Argument {
    /// The context as the program got it.
    Ctx,
    /// Anything initialised.
    Any,
    /// A map.
    Map,
    /// A key of that map, readable.
    Key,
    /// A value of that map, readable.
    Value,
    /// Memory to fill; the next argument is its size.
    Buffer,
    /// That size, at least one.
    BufferBytes,
}

impl Helper {
    /// Its arguments from r1 on.
    pub(crate) const fn arguments(self) -> &'static [Argument] {
        use Argument::{Any, Buffer, BufferBytes, Ctx, Key, Map, Value};
        match self {
            Self::MapLookupElem | Self::MapDeleteElem => &[Map, Key],
            Self::MapUpdateElem => &[Map, Key, Value, Any],
            Self::KtimeGetNs
            | Self::KtimeGetBootNs
            | Self::KtimeGetCoarseNs
            | Self::GetPrandomU32
            | Self::GetSmpProcessorId => &[],
            Self::GetSocketCookie | Self::GetSocketUid => &[Ctx],
            Self::SkbLoadBytes => &[Ctx, Any, Buffer, BufferBytes],
            Self::SkbLoadBytesRelative => &[Ctx, Any, Buffer, BufferBytes, Any],
        }
    }
}

/// The kernel's name of a helper this VM does not have, for the error message.
pub(crate) const fn foreign_name(number: i32) -> &'static str {
    match number {
        4 => "probe_read",
        6 => "trace_printk",
        9 => "skb_store_bytes",
        12 => "tail_call",
        25 => "perf_event_output",
        35 => "get_current_task",
        45 => "probe_read_str",
        87 => "map_push_elem",
        88 => "map_pop_elem",
        89 => "map_peek_elem",
        93 => "spin_lock",
        94 => "spin_unlock",
        112 => "probe_read_user",
        113 => "probe_read_kernel",
        114 => "probe_read_user_str",
        115 => "probe_read_kernel_str",
        118 => "jiffies64",
        130 => "ringbuf_output",
        131 => "ringbuf_reserve",
        132 => "ringbuf_submit",
        133 => "ringbuf_discard",
        134 => "ringbuf_query",
        153 => "snprintf_btf",
        154 => "per_cpu_ptr",
        164 => "for_each_map_elem",
        165 => "snprintf",
        169 => "timer_init",
        170 => "timer_set_callback",
        171 => "timer_start",
        172 => "timer_cancel",
        177 => "trace_vprintk",
        181 => "loop",
        182 => "strncmp",
        194 => "kptr_xchg",
        195 => "map_lookup_percpu_elem",
        208 => "ktime_get_tai_ns",
        _ => "helper",
    }
}

/// `get_socket_cookie` of a buffer without a socket.
pub(crate) const SOCKET_COOKIE: u64 = 0;
/// `get_socket_uid` of a buffer without a socket: the overflow uid.
pub(crate) const SOCKET_UID: u64 = 65_534;
