//! The life of a connection on a perfect link.

use std::time::Duration;

use kcm_stack::{
    Cause, ConnectOptions, ListenOptions, ListenerId, Ready, Received, RecvError, State, TcpId,
};

use crate::link::LinkConfig;
use crate::net::{Net, at};
use crate::world::World;

const SOON: Duration = Duration::from_secs(5);

pub(crate) fn perfect() -> Net {
    Net::new([LinkConfig::default(), LinkConfig::default()], 1)
}

pub(crate) fn listen(net: &mut Net, port: u16) -> ListenerId {
    let options = ListenOptions {
        backlog: 16,
        ..ListenOptions::default()
    };
    net.stacks[1].tcp_listen(at(1, port), &options).unwrap()
}

/// A connection from side 0 to side 1.
pub(crate) fn establish(net: &mut Net, port: u16) -> (TcpId, TcpId) {
    let l = listen(net, port);
    let c = net.stacks[0]
        .tcp_connect(net.now, at(1, port), &ConnectOptions::default())
        .unwrap();
    let mut s = None;
    net.run_until(SOON, "handshake", |n| {
        s = s.or_else(|| n.stacks[1].tcp_accept(l));
        s.is_some()
    });
    assert_eq!(net.stacks[0].tcp_state(c), Some(State::Established));
    (c, s.unwrap())
}

#[test]
fn handshake_data_both_ways_and_orderly_close() {
    let mut net = perfect();
    let (c, s) = establish(&mut net, 80);
    let now = net.now;
    assert_eq!(
        net.stacks[0].tcp_send(now, c, &[b"hel", b"lo"], false),
        Ok(5)
    );
    let mut buf = [0; 64];
    net.run_until(SOON, "request", |n| n.stacks[1].tcp_can_recv(s));
    assert_eq!(net.stacks[1].tcp_peek(net.now, s, &mut buf), Ok(5));
    assert_eq!(net.stacks[1].tcp_recv(net.now, s, &mut buf), Ok(5));
    assert_eq!(&buf[..5], b"hello");
    assert_eq!(
        net.stacks[1].tcp_recv(net.now, s, &mut buf),
        Err(RecvError::WouldBlock)
    );
    let now = net.now;
    net.stacks[1].tcp_send(now, s, &[b"world"], false).unwrap();
    net.stacks[1].tcp_close(now, s);
    net.run_until(SOON, "reply", |n| n.stacks[0].tcp_can_recv(c));
    assert_eq!(net.stacks[0].tcp_recv(net.now, c, &mut buf), Ok(5));
    net.run_until(SOON, "end of stream", |n| {
        n.stacks[0].tcp_recv(n.now, c, &mut buf) == Ok(0)
    });
    assert_eq!(net.stacks[0].tcp_state(c), Some(State::CloseWait));
    let now = net.now;
    net.stacks[0].tcp_close(now, c);
    net.run_for(Duration::from_secs(1));
    // The active closer keeps one TIME-WAIT record, for a minute.
    assert_eq!(
        (net.stacks[0].flow_count(), net.stacks[1].flow_count()),
        (0, 1)
    );
    net.run_for(Duration::from_secs(60));
    assert_eq!(
        (net.stacks[0].flow_count(), net.stacks[1].flow_count()),
        (0, 0)
    );
    assert_eq!(
        (net.stacks[0].stream_bytes(), net.stacks[1].stream_bytes()),
        (0, 0)
    );
}

#[test]
fn connecting_to_a_closed_port_is_refused() {
    let mut net = perfect();
    let c = net.stacks[0]
        .tcp_connect(net.now, at(1, 81), &ConnectOptions::default())
        .unwrap();
    net.run_until(SOON, "refusal", |n| {
        n.stacks[0].tcp_ready(c).contains(Ready::ERROR)
    });
    assert_eq!(net.stacks[0].tcp_take_error(c), Some(Cause::Refused));
    assert_eq!(net.stacks[0].tcp_state(c), Some(State::Closed));
}

#[test]
fn an_absent_neighbour_is_host_unreachable() {
    let mut net = perfect();
    let remote = "10.0.0.77:80".parse().unwrap();
    let c = net.stacks[0]
        .tcp_connect(net.now, remote, &ConnectOptions::default())
        .unwrap();
    net.run_until(SOON, "no answer", |n| {
        n.stacks[0].tcp_ready(c).contains(Ready::ERROR)
    });
    assert_eq!(
        net.stacks[0].tcp_take_error(c),
        Some(Cause::HostUnreachable)
    );
}

#[test]
fn ipv6_resolves_neighbours_and_connects() {
    let mut net = perfect();
    let local = std::net::SocketAddr::new(crate::net::ip6(1), 7);
    let l = net.stacks[1]
        .tcp_listen(local, &ListenOptions::default())
        .unwrap();
    let c = net.stacks[0]
        .tcp_connect(net.now, local, &ConnectOptions::default())
        .unwrap();
    net.run_until(SOON, "handshake", |n| {
        n.stacks[1].tcp_accept_queue_len(l) == Some(1)
    });
    assert!(net.stacks[0].tcp_may_send(c));
}

#[test]
fn abort_resets_the_peer() {
    let mut net = perfect();
    let (c, s) = establish(&mut net, 80);
    let now = net.now;
    net.stacks[0].tcp_abort(now, c);
    net.run_until(SOON, "reset", |n| {
        n.stacks[1].tcp_ready(s).contains(Ready::ERROR)
    });
    let mut buf = [0; 8];
    assert_eq!(
        net.stacks[1].tcp_recv(net.now, s, &mut buf),
        Err(RecvError::Failed(Cause::Reset))
    );
    assert_eq!(net.stacks[1].tcp_recv(net.now, s, &mut buf), Ok(0));
}

#[test]
fn connecting_to_our_own_address_loops_back() {
    let mut net = perfect();
    let l = listen(&mut net, 80);
    let now = net.now;
    let c = net.stacks[1]
        .tcp_connect(now, at(1, 80), &ConnectOptions::default())
        .unwrap();
    net.run_until(SOON, "handshake", |n| {
        n.stacks[1].tcp_accept_queue_len(l) == Some(1)
    });
    let s = net.stacks[1].tcp_accept(l).unwrap();
    let now = net.now;
    net.stacks[1].tcp_send(now, c, &[b"me"], false).unwrap();
    net.run_until(SOON, "data", |n| n.stacks[1].tcp_can_recv(s));
    assert_eq!(net.links[1].carried, 0);
}

/// A thread that read the clock, waited for a lock, and then takes in an ACK of what was sent meanwhile.
#[test]
fn an_ack_from_before_its_segment_is_no_long_round_trip() {
    let mut net = perfect();
    let (c, _) = establish(&mut net, 80);
    let [sender, receiver] = &mut net.stacks;
    let mut buf = vec![0; 2_000];
    for n in 1..20 {
        let earlier = net.now + Duration::from_millis(10 * n);
        let sent_at = earlier + Duration::from_micros(700);
        let sent = sender.tcp_send(sent_at, c, &[&[7; 3_000]], false);
        assert_eq!(sent, Ok(3_000));
        while let Some(t) = sender.poll_transmit(sent_at, &mut buf) {
            receiver.handle_frame(sent_at, &buf[..t.len], Received::default());
        }
        while let Some(t) = receiver.poll_transmit(sent_at, &mut buf) {
            sender.handle_frame(earlier, &buf[..t.len], Received::default());
        }
    }
    let info = sender.tcp_info(net.now, c).unwrap();
    assert!(
        info.bytes_acked > 10_000 && info.rto < Duration::from_secs(1),
        "{info:?}"
    );
}
