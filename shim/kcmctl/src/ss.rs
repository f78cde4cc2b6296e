//! `kcmctl ss PID`: sockets of the stack in the shape of `ss -tuain`.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::layout::socket;
use crate::page::{self, Page};
use crate::{Outcome, out, process};

/// Names of states by number, as ss(8) has them.
const STATES: [&str; 12] = [
    "UNKNOWN",
    "ESTAB",
    "SYN-SENT",
    "SYN-RECV",
    "FIN-WAIT-1",
    "FIN-WAIT-2",
    "TIME-WAIT",
    "UNCONN",
    "CLOSE-WAIT",
    "LAST-ACK",
    "LISTEN",
    "CLOSING",
];
/// `TCPI_OPT_*` by bit.
const OPTIONS: [&str; 4] = ["ts", "sack", "wscale", "ecn"];

/// A socket of the stack: the words of its record.
#[derive(Clone, Copy)]
pub(crate) struct Socket<'a>(&'a [u64]);

impl Socket<'_> {
    fn word(&self, at: usize) -> u64 {
        self.0.get(at).copied().unwrap_or(0)
    }

    pub(crate) fn inode(&self) -> u64 {
        self.word(socket::INODE)
    }

    /// The two numbers of a word.
    fn pair(&self, at: usize) -> (u64, u64) {
        let word = self.word(at);
        (word & u64::from(u32::MAX), word >> 32)
    }

    pub(crate) fn protocol(&self) -> &'static str {
        match self.pair(socket::PROTOCOL_STATE).0 {
            17 => "udp",
            _ => "tcp",
        }
    }

    pub(crate) fn state(&self) -> &'static str {
        let state = self.pair(socket::PROTOCOL_STATE).1 as usize;
        STATES.get(state).copied().unwrap_or(STATES[0])
    }

    pub(crate) fn address(&self, at: usize) -> SocketAddr {
        page::address(self.0.get(at..).unwrap_or(&[]))
    }

    /// Numbers of the connection by the names ss(8) gives them; empty where it has none.
    fn numbers(&self) -> Vec<(&'static str, String)> {
        if self.word(socket::HAS_INFO) == 0 {
            return Vec::new();
        }
        let ms = |us: u64| us as f64 / 1000.0;
        let (sent_scale, received_scale) = self.pair(socket::WSCALE);
        let (mss, rcv_mss) = self.pair(socket::MSS);
        let segments = |bytes: u64| bytes.div_ceil(mss.max(1));
        let (segs_out, segs_in) = self.pair(socket::SEGMENTS);
        let (retrans, total_retrans) = self.pair(socket::RETRANS);
        let (lost, sacked) = self.pair(socket::LOST_SACKED);
        let (unacked, notsent) = self.pair(socket::UNACKED_NOTSENT);
        let (snd_wnd, rcv_wnd) = self.pair(socket::WINDOWS);
        let (last_snd, last_rcv) = self.pair(socket::LAST);
        let mut numbers = vec![
            ("wscale", format!("{sent_scale},{received_scale}")),
            ("rto", format!("{}", ms(self.word(socket::RTO)))),
            (
                "rtt",
                format!(
                    "{}/{}",
                    ms(self.word(socket::RTT)),
                    ms(self.word(socket::RTTVAR))
                ),
            ),
            ("mss", mss.to_string()),
            ("rcvmss", rcv_mss.to_string()),
            ("cwnd", (self.word(socket::CWND) / mss.max(1)).to_string()),
        ];
        let more = [
            ("backoff", self.pair(socket::BACKOFF_CONGESTION).0),
            ("ssthresh", segments(self.word(socket::SSTHRESH))),
            ("bytes_acked", self.word(socket::BYTES_ACKED)),
            ("bytes_received", self.word(socket::BYTES_RECEIVED)),
            ("segs_out", segs_out),
            ("segs_in", segs_in),
            ("lastsnd", last_snd),
            ("lastrcv", last_rcv),
            ("unacked", segments(unacked)),
            ("lost", segments(lost)),
            ("sacked", segments(sacked)),
            ("notsent", notsent),
            ("snd_wnd", snd_wnd),
            ("rcv_wnd", rcv_wnd),
        ];
        let set = more.into_iter().filter(|(_, value)| *value > 0);
        numbers.extend(set.map(|(name, value)| (name, value.to_string())));
        if total_retrans > 0 {
            numbers.push(("retrans", format!("{}/{total_retrans}", segments(retrans))));
        }
        if self.word(socket::MIN_RTT) > 0 {
            numbers.push(("minrtt", ms(self.word(socket::MIN_RTT)).to_string()));
        }
        numbers
    }

    /// Words of the second line: options, the congestion control, numbers.
    fn words(&self) -> Vec<String> {
        let numbers = self.numbers();
        if numbers.is_empty() {
            return Vec::new();
        }
        let options = self.word(socket::OPTIONS);
        let set = OPTIONS
            .iter()
            .enumerate()
            .filter(|(bit, name)| options >> bit & 1 == 1 && **name != "wscale");
        let mut words: Vec<_> = set.map(|(_, name)| (*name).to_owned()).collect();
        words.push(self.congestion().to_owned());
        words.extend(
            numbers
                .iter()
                .map(|(name, value)| format!("{name}:{value}")),
        );
        words
    }

    fn congestion(&self) -> &'static str {
        match self.pair(socket::BACKOFF_CONGESTION).1 {
            1 => "cubic",
            2 => "bbr",
            _ => "reno",
        }
    }

    fn json(&self, fds: &[i64]) -> Value {
        json!({
            "protocol": self.protocol(),
            "state": self.state(),
            "local": self.address(socket::LOCAL).to_string(),
            "remote": self.address(socket::REMOTE).to_string(),
            "recv_q": self.word(socket::RECV_Q),
            "send_q": self.word(socket::SEND_Q),
            "fds": fds,
            "congestion": self.congestion(),
            "info": self.numbers().into_iter().collect::<BTreeMap<_, _>>(),
        })
    }
}

pub(crate) fn ss(pid: u32, as_json: bool) -> Outcome<()> {
    let page = page::of(pid)?;
    let descriptors = process::sockets(pid);
    let sockets: Vec<_> = sockets(&page).collect();
    let fds = |socket: &Socket<'_>| {
        let fds = descriptors.get(&socket.inode());
        fds.map_or(&[][..], Vec::as_slice)
    };
    if as_json {
        let all = sockets.iter().map(|socket| socket.json(fds(socket)));
        return out::print_json(&Value::Array(all.collect()));
    }
    let mut table = out::Table::new(&[
        "<NETID", "<STATE", "RECV-Q", "SEND-Q", "LOCAL", "PEER", "<FD",
    ]);
    for socket in &sockets {
        let fds: Vec<_> = fds(socket).iter().map(i64::to_string).collect();
        table.row([
            socket.protocol().to_owned(),
            socket.state().to_owned(),
            socket.word(socket::RECV_Q).to_string(),
            socket.word(socket::SEND_Q).to_string(),
            socket.address(socket::LOCAL).to_string(),
            socket.address(socket::REMOTE).to_string(),
            fds.join(","),
        ]);
    }
    let columns = out::columns();
    let mut lines = table.lines(columns).into_iter();
    let mut text = lines.next().unwrap_or_default() + "\n";
    for (line, socket) in lines.zip(&sockets) {
        text += &(line + "\n");
        let words = socket.words();
        if !words.is_empty() {
            text += &out::wrapped(&format!("         {}", words.join(" ")), 9, columns);
        }
    }
    if page.left_out > 0 {
        text += &format!("and {} more that the page has no room for\n", page.left_out);
    }
    out::print(&text)
}

/// The sockets of the stack that the page has room for.
pub(crate) fn sockets(page: &Page) -> impl Iterator<Item = Socket<'_>> {
    page.sockets.iter().map(|words| Socket(words))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::record;

    #[test]
    fn words_of_a_record_become_a_line() {
        let mut words = [0; record::WORDS];
        words[socket::PROTOCOL_STATE] = 6 | 1 << 32;
        words[socket::LOCAL + 1] = 0xffff_0a00_0001;
        words[socket::LOCAL + 2] = 80;
        words[socket::HAS_INFO] = 1;
        words[socket::OPTIONS] = 7;
        words[socket::MSS] = 1448;
        words[socket::CWND] = 14_480;
        words[socket::RTT] = 1500;
        words[socket::BACKOFF_CONGESTION] = 1 << 32;
        let socket = Socket(&words);
        assert_eq!((socket.protocol(), socket.state()), ("tcp", "ESTAB"));
        assert_eq!(socket.address(socket::LOCAL).to_string(), "10.0.0.1:80");
        let mut of_bbr = words;
        of_bbr[socket::BACKOFF_CONGESTION] = 2 << 32;
        assert_eq!(Socket(&of_bbr).congestion(), "bbr");
        let line = socket.words().join(" ");
        assert!(line.starts_with("ts sack cubic wscale:0,0 rto:0 rtt:1.5/0 mss:1448"));
        assert!(line.ends_with("cwnd:10"), "{line}");
    }

    #[test]
    fn absurd_words_are_shown_without_a_panic() {
        let words = [u64::MAX; record::WORDS];
        let socket = Socket(&words);
        assert_eq!((socket.state(), socket.congestion()), ("UNKNOWN", "reno"));
        assert!(!socket.words().is_empty());
        assert!(socket.json(&[]).is_object());
    }
}
