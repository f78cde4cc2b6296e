//! Every bound of the engine, with its unit in its name and its reason. Values that Linux has a
//! sysctl for start from Linux's default.

use core::time::Duration;

/// Out-of-order ranges remembered per connection. Linux bounds by memory only; an array of 8 KiB is
/// searched and shifted in under a microsecond. A sender in slow start that fills a queue at twice its
/// rate loses every second segment of a flight: so many holes let 3 MB through.
pub const OOO_RANGES_MAX: usize = 1024;
/// Segments kept in the scoreboard of one connection; beyond it the sender waits for ACKs. At one
/// entry per segment this covers a 23 MB flight at MSS 1448.
pub const SENT_SEGMENTS_MAX: usize = 16 * 1024;

/// RFC 6298 §2.1: before the first RTT sample.
pub const RTO_INITIAL: Duration = Duration::from_secs(1);
/// RFC 6298 §5.7: where a retransmitted SYN left no sample (Linux TCP_TIMEOUT_FALLBACK).
pub const RTO_FALLBACK: Duration = Duration::from_secs(3);
/// Linux TCP_RTO_MIN, below the 1 s of RFC 6298 §2.4.
pub const RTO_MIN: Duration = Duration::from_millis(200);
/// Linux TCP_RTO_MAX.
pub const RTO_MAX: Duration = Duration::from_secs(120);
/// tcp_syn_retries.
pub const SYN_RETRIES: u8 = 6;
/// tcp_synack_retries.
pub const SYNACK_RETRIES: u8 = 5;
/// tcp_retries2.
pub const RETRIES2: u8 = 15;
/// Retransmissions of an orphan (tcp_orphan_retries, whose 0 means 8).
pub const ORPHAN_RETRIES: u8 = 8;

/// Linux TCP_DELACK_MIN: the delayed ACK timer while the exchange is interactive.
pub const DELAYED_ACK: Duration = Duration::from_millis(40);
/// How long an acknowledgement is held for the answer that may carry it
/// ([`TcpConfig::hold_acks`](crate::TcpConfig::hold_acks)), if nobody releases it: an eighth of the
/// delayed ACK timer, and far above the time a program takes from one call to the next.
pub const ACK_HOLD: Duration = Duration::from_millis(5);
/// Segments acknowledged at once at the start of a connection (Linux TCP_MAX_QUICKACKS).
pub const QUICKACKS: u8 = 16;
/// RFC 6928: initial window in segments.
pub const INITIAL_WINDOW_SEGMENTS: u32 = 10;
/// Congestion window in bytes; 1 GiB keeps sums of windows within 32 bits.
pub const CWND_BYTES_MAX: u32 = 1 << 30;
/// Longest time a corked partial segment waits, tcp(7).
pub const CORK: Duration = Duration::from_millis(200);

/// TIME-WAIT length (Linux TCP_TIMEWAIT_LEN).
pub const TIME_WAIT: Duration = Duration::from_secs(60);
/// Orphaned FIN-WAIT-2 (tcp_fin_timeout).
pub const FIN_WAIT_2: Duration = Duration::from_secs(60);
/// tcp_keepalive_time.
pub const KEEPALIVE_IDLE: Duration = Duration::from_secs(7200);
/// tcp_keepalive_intvl.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(75);
/// tcp_keepalive_probes.
pub const KEEPALIVE_PROBES: u8 = 9;
/// Challenge ACKs per second over all connections (RFC 5961 §7, Linux's limit before it became
/// randomised per connection).
pub const CHALLENGE_ACKS_PER_SEC: u32 = 1000;
/// Least time between ACKs sent for unacceptable segments of one connection
/// (tcp_invalid_ratelimit).
pub const INVALID_ACK_INTERVAL: Duration = Duration::from_millis(500);

/// RFC 9293 §3.7.1: MSS when the peer sends none.
pub const MSS_DEFAULT_V4: u16 = 536;
/// RFC 9293 §3.7.1, for IPv6.
pub const MSS_DEFAULT_V6: u16 = 1220;
/// Smallest MSS accepted from a peer or by path MTU discovery (Linux TCP_MIN_SND_MSS is 48; a
/// smaller one turns every connection into a packet flood).
pub const MSS_MIN: u16 = 88;
/// net.ipv4.route.min_pmtu: an ICMP claim below it is a lie or an attack.
pub const PMTU_MIN_V4: u16 = 552;
/// RFC 8200 §5.
pub const PMTU_MIN_V6: u16 = 1280;
/// MSS tried when full-sized segments vanish without an ICMP error (tcp_base_mss). Each further timeout
/// halves it, down to [`MSS_MIN`] (Linux: tcp_mtu_probe_floor, 48).
pub const BLACK_HOLE_MSS: u16 = 1024;
/// Time from the first timeout of a full-sized segment to the one at which a black hole is suspected: that of
/// tcp_retries1 (3) retransmissions that begin with the least RTO.
pub const BLACK_HOLE_TIME: Duration = RTO_MIN.saturating_mul(15);
/// The search for a larger MSS ends when its interval is below so many bytes (tcp_probe_threshold).
pub const MTU_PROBE_THRESHOLD: u16 = 8;
/// Time after which a search that has ended begins again (tcp_probe_interval).
pub const MTU_PROBE_INTERVAL: Duration = Duration::from_secs(600);
/// Smallest congestion window in which a segment may be spent on a probe: the loss of one in a smaller
/// window would stall the flow (Linux's tcp_mtu_probe).
pub const MTU_PROBE_CWND_SEGMENTS: u32 = 11;

/// Default receive buffer (tcp_rmem\[1\]) and what auto-tuning may reach (tcp_rmem\[2\]).
pub const RCVBUF_BYTES: u32 = 128 * 1024;
/// See [`RCVBUF_BYTES`].
pub const RCVBUF_BYTES_MAX: u32 = 6 * 1024 * 1024;
/// Default send buffer; grows with the congestion window up to [`SNDBUF_BYTES_MAX`].
pub const SNDBUF_BYTES: u32 = 128 * 1024;
/// tcp_wmem\[2\].
pub const SNDBUF_BYTES_MAX: u32 = 4 * 1024 * 1024;
/// Memory in stream buffers over all connections (tcp_mem).
pub const STREAM_BYTES_MAX: usize = 1 << 30;

/// Embryonic connections per listener before cookies are sent (tcp_max_syn_backlog).
pub const SYN_BACKLOG: usize = 1024;
/// net.core.somaxconn: listen(2)'s backlog is clamped to it.
pub const BACKLOG_MAX: usize = 4096;
/// TIME-WAIT records (tcp_max_tw_buckets); beyond it connections skip TIME-WAIT.
pub const TIME_WAIT_MAX: usize = 262_144;
/// Ephemeral ports (ip_local_port_range).
pub const EPHEMERAL_PORTS: core::ops::RangeInclusive<u16> = 32_768..=60_999;

/// Neighbour entries (gc_thresh3).
pub const NEIGHBORS_MAX: usize = 1024;
/// Bytes of frames waiting for one neighbour's address (unres_qlen_bytes).
pub const NEIGHBOR_PENDING_BYTES_MAX: usize = 212_992;
/// Solicitations before a neighbour is unreachable (mcast_solicit), one a second.
pub const NEIGHBOR_PROBES: u8 = 3;
/// How long a confirmation counts (base_reachable_time).
pub const NEIGHBOR_REACHABLE: Duration = Duration::from_secs(30);
/// Routes per stack.
pub const ROUTES_MAX: usize = 1024;
/// Addresses per stack.
pub const ADDRESSES_MAX: usize = 64;
/// Path MTU entries, and how long one is believed (mtu_expires).
pub const PMTU_ENTRIES_MAX: usize = 4096;
/// See [`PMTU_ENTRIES_MAX`].
pub const PMTU_EXPIRES: Duration = Duration::from_secs(600);

/// Interfaces per stack; connections name theirs in a byte.
pub const IFACES_MAX: usize = 16;

/// Stacks that share their addresses: a set of them is the bits of a word.
pub const SHARDS_MAX: u8 = 64;

/// Longest wait for an answer from a DHCP server (RFC 2131 §4.1).
pub const DHCP_RETRY_MAX: Duration = Duration::from_secs(64);
/// Shortest lease: a server that grants less would have us ask all the time.
pub const DHCP_LEASE_MIN: Duration = Duration::from_secs(60);

/// Multicast groups per stack, over all interfaces.
pub const GROUPS_MAX: usize = 1024;
/// Multicast groups per socket (igmp_max_memberships).
pub const SOCKET_GROUPS_MAX: usize = 20;
/// Senders that a socket lists for a group, in IPv4 (igmp_max_msf).
pub const SOCKET_SOURCES_MAX_V4: usize = 10;
/// As [`SOCKET_SOURCES_MAX_V4`], in IPv6 (mld_max_msf).
pub const SOCKET_SOURCES_MAX_V6: usize = 64;
/// Senders that all sockets together list for a group of an interface: more than a report holds.
pub const GROUP_SOURCES_MAX: usize = 512;

/// Memory in fragments that wait for others (ipfrag_high_thresh).
pub const FRAGMENT_BYTES_MAX: usize = 4 << 20;
/// Datagrams some of whose fragments are here: bounds the work of ending them all at once.
pub const FRAGMENT_DATAGRAMS_MAX: usize = 1024;
/// Cost charged per fragment besides its bytes, so that tiny ones are bounded too.
pub const FRAGMENT_OVERHEAD_BYTES: usize = 128;
/// How long fragments wait for the others (ipfrag_time).
pub const FRAGMENTS_TIME_V4: Duration = Duration::from_secs(30);
/// As [`FRAGMENTS_TIME_V4`] (ip6frag_time; RFC 8200 §4.5).
pub const FRAGMENTS_TIME_V6: Duration = Duration::from_secs(60);

/// Frames composed outside connections (ARP, ICMP, RST, SYN-ACK) waiting for the device.
pub const CONTROL_FRAMES_MAX: usize = 1024;
/// ICMP errors sent per second (icmp_msgs_per_sec).
pub const ICMP_ERRORS_PER_SEC: u32 = 1000;
/// Frames one connection sends before the next has its turn.
pub const EGRESS_QUANTUM_FRAMES: u32 = 16;
/// Timers expired per call; the rest keep the deadline in the past and follow at the next call.
pub const TIMERS_PER_POLL_MAX: usize = 4096;

/// Default UDP receive queue (net.core.rmem_default).
pub const UDP_RCVBUF_BYTES: usize = 212_992;
/// Cost charged per queued datagram besides its bytes, so that empty ones are bounded too.
pub const UDP_OVERHEAD_BYTES: usize = 256;

const _: () = {
    assert!(
        RCVBUF_BYTES_MAX < 1 << 30,
        "a window must stay below 2^30 (RFC 7323 §2.2)"
    );
    assert!(MSS_MIN < MSS_DEFAULT_V4);
    assert!(
        65_536 + 65_536 / 8 * FRAGMENT_OVERHEAD_BYTES <= FRAGMENT_BYTES_MAX / 2,
        "one datagram in the smallest fragments fits"
    );
    assert!(TIME_WAIT_MAX < 1 << 30, "indices carry two kind bits");
};
