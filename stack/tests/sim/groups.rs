//! Multicast: who hears what, and what routers hear about it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use kcm_stack::{IfaceId, RecvError, SocketError, SourceChange, UdpBindOptions, UdpId, UdpOpts};

use crate::fabric::{Fabric, ip, ip6};
use crate::link::LinkConfig;
use crate::net::{checksum, fill_ipv4_checksum, frame};
use crate::world::World;

const ROUTER: [u8; 6] = [2, 9, 9, 9, 9, 9];

fn any(v6: bool, port: u16) -> SocketAddr {
    let ip = if v6 { "::" } else { "0.0.0.0" };
    SocketAddr::new(ip.parse().unwrap(), port)
}

fn group(v6: bool) -> IpAddr {
    let group = if v6 { "ff05::1:3" } else { "239.1.2.3" };
    group.parse().unwrap()
}

fn shared(f: &mut Fabric, host: usize, v6: bool) -> UdpId {
    let options = UdpBindOptions {
        reuse: kcm_stack::Reuse::Address,
        ..UdpBindOptions::default()
    };
    f.stacks[host]
        .udp_bind_with(any(v6, 5_000), &options)
        .unwrap()
}

/// What was said about groups since the last time: type of message, and of the record if there is one,
/// and the address it was sent to.
fn reports(f: &mut Fabric) -> Vec<(u8, u8, String)> {
    let frames = f.tap.replace(Vec::new()).unwrap();
    let mut all = Vec::new();
    for (_, frame) in frames {
        let p = &frame[14..];
        if p[0] >> 4 == 4 && p[9] == 2 {
            assert_eq!(
                (p[0] & 15, p[8], &p[20..24]),
                (6, 1, &[0x94, 4, 0, 0][..]),
                "router alert"
            );
            assert_eq!(checksum(&p[..24]), [0, 0]);
            let igmp = &p[24..];
            assert_eq!(checksum(igmp), [0, 0]);
            let record = if igmp[0] == 0x22 { igmp[8] } else { 0 };
            let to: [u8; 4] = p[16..20].try_into().unwrap();
            all.push((igmp[0], record, IpAddr::from(to).to_string()));
        } else if p[0] >> 4 == 6 && p[6] == 0 {
            assert_eq!((p[7], &p[40..48]), (1, &[58, 0, 5, 2, 0, 0, 1, 0][..]));
            let mld = &p[48..];
            let record = if mld[0] == 143 { mld[8] } else { 0 };
            let to: [u8; 16] = p[24..40].try_into().unwrap();
            all.push((mld[0], record, IpAddr::from(to).to_string()));
        }
    }
    all
}

#[test]
fn members_hear_a_group_and_others_do_not() {
    for v6 in [false, true] {
        let mut f = Fabric::new(&[&[0], &[0], &[0, 1], &[1]], &LinkConfig::default(), 1);
        let second = IfaceId::from_index(1);
        let ids: Vec<UdpId> = (0..4).map(|h| shared(&mut f, h, v6)).collect();
        let twin = shared(&mut f, 1, v6);
        f.stacks[1].udp_join(ids[1], group(v6), None).unwrap();
        let again = f.stacks[1].udp_join(ids[1], group(v6), None);
        assert_eq!(again, Err(SocketError::AddressInUse));
        f.stacks[2].udp_join(ids[2], group(v6), second).unwrap();
        f.run_for(Duration::from_secs(3));
        let to = Some(SocketAddr::new(group(v6), 5_000));
        f.stacks[0]
            .udp_send(f.now, ids[0], to, &[b"hello"])
            .unwrap();
        f.run_for(Duration::from_secs(1));
        let d = f.stacks[1].udp_recv(ids[1]).unwrap();
        assert_eq!((d.to.ip(), d.ttl), (group(v6), 1));
        // IP_MULTICAST_ALL: a socket of the same host that joined nothing hears it too, by default.
        assert_eq!(f.stacks[1].udp_recv(twin).unwrap().data, d.data);
        // Host 2 is in the group on its other network.
        assert_eq!(f.stacks[2].udp_recv(ids[2]), Err(RecvError::WouldBlock));
        // Not a member: the sender does not hear itself.
        assert_eq!(f.stacks[0].udp_recv(ids[0]), Err(RecvError::WouldBlock));
        f.stacks[3].udp_send(f.now, ids[3], to, &[b"here"]).unwrap();
        f.run_for(Duration::from_secs(1));
        let d = f.stacks[2].udp_recv(ids[2]).unwrap();
        assert_eq!(Some(d.iface), second);
        // A member hears itself, unless it will not; large datagrams too.
        let big = vec![3; 4_000];
        f.stacks[1].udp_send(f.now, ids[1], to, &[&big]).unwrap();
        f.run_for(Duration::from_secs(1));
        assert_eq!(*f.stacks[1].udp_recv(ids[1]).unwrap().data, *big);
        let quiet = UdpOpts {
            multicast_loop: false,
            ..UdpOpts::default()
        };
        f.stacks[1].udp_set_opts(ids[1], quiet).unwrap();
        f.stacks[1]
            .udp_send(f.now, ids[1], to, &[b"quiet"])
            .unwrap();
        f.run_for(Duration::from_secs(1));
        assert_eq!(f.stacks[1].udp_recv(ids[1]), Err(RecvError::WouldBlock));
        // Who asks for its own groups only hears no other's.
        let own = UdpOpts {
            multicast_all: false,
            ..UdpOpts::default()
        };
        while f.stacks[1].udp_recv(twin).is_ok() {}
        f.stacks[1].udp_set_opts(twin, own).unwrap();
        f.stacks[0]
            .udp_send(f.now, ids[0], to, &[b"hello"])
            .unwrap();
        f.run_for(Duration::from_secs(1));
        assert_eq!(f.stacks[1].udp_recv(twin), Err(RecvError::WouldBlock));
        assert!(f.stacks[1].udp_recv(ids[1]).is_ok());
        // The last socket to go takes the host out of the group.
        f.stacks[1].udp_leave(ids[1], group(v6), None).unwrap();
        let gone = f.stacks[1].udp_leave(ids[1], group(v6), None);
        assert_eq!(gone, Err(SocketError::AddressNotAvailable));
        f.stacks[0].udp_send(f.now, ids[0], to, &[b"gone"]).unwrap();
        f.run_for(Duration::from_secs(1));
        assert_eq!(f.stacks[1].udp_recv(ids[1]), Err(RecvError::WouldBlock));
    }
}

#[test]
fn routers_hear_of_joins_and_leaves_in_the_version_they_speak() {
    let mut f = Fabric::new(&[&[0]], &LinkConfig::default(), 2);
    f.run_for(Duration::from_secs(3));
    f.tap = Some(Vec::new());
    let said = |kind, record, to: &str| (kind, record, to.to_owned());
    let twice = |what: (u8, u8, String)| vec![what.clone(), what];
    for (v6, report, to) in [(false, 0x22, "224.0.0.22"), (true, 143, "ff02::16")] {
        let u = shared(&mut f, 0, v6);
        f.stacks[0].udp_join(u, group(v6), None).unwrap();
        f.run_for(Duration::from_secs(3));
        assert_eq!(reports(&mut f), twice(said(report, 4, to)));
        f.stacks[0].udp_close(u);
        f.run_for(Duration::from_secs(3));
        assert_eq!(reports(&mut f), twice(said(report, 3, to)));
    }
    // An IGMPv2 querier, then an MLDv1 one.
    let mut query = vec![
        0x46, 0, 0, 32, 0, 0, 0, 0, 1, 2, 0, 0, 10, 0, 0, 99, 224, 0, 0, 1,
    ];
    query.extend([0x94, 4, 0, 0, 0x11, 50, 0, 0, 0, 0, 0, 0]);
    let sum = checksum(&query[24..]);
    query[26..28].copy_from_slice(&sum);
    let sum = checksum(&query[..24]);
    query[10..12].copy_from_slice(&sum);
    f.inject(0, &frame([1, 0, 0x5e, 0, 0, 1], ROUTER, &query));
    let u = shared(&mut f, 0, false);
    f.stacks[0].udp_join(u, group(false), None).unwrap();
    f.run_for(Duration::from_secs(11));
    assert_eq!(reports(&mut f), twice(said(0x16, 0, "239.1.2.3")));
    f.inject(0, &frame([1, 0, 0x5e, 0, 0, 1], ROUTER, &query));
    f.run_for(Duration::from_secs(5));
    assert_eq!(reports(&mut f), [said(0x16, 0, "239.1.2.3")]);
    f.stacks[0].udp_close(u);
    f.run_for(Duration::from_secs(11));
    assert_eq!(reports(&mut f), [said(0x17, 0, "224.0.0.2")]);

    let router: std::net::Ipv6Addr = "fe80::99".parse().unwrap();
    let all: std::net::Ipv6Addr = "ff02::1".parse().unwrap();
    let mut query = vec![0x60, 0, 0, 0, 0, 32, 0, 1];
    query.extend(router.octets());
    query.extend(all.octets());
    query.extend([58, 0, 5, 2, 0, 0, 1, 0, 130, 0, 0, 0, 0x13, 0x88, 0, 0]);
    query.extend([0; 16]);
    let pseudo = [&query[8..40], &[0, 0, 0, 24, 0, 0, 0, 58], &query[48..]].concat();
    let sum = checksum(&pseudo);
    query[50..52].copy_from_slice(&sum);
    let u = shared(&mut f, 0, true);
    f.stacks[0].udp_join(u, group(true), None).unwrap();
    f.inject(0, &frame([0x33, 0x33, 0, 0, 0, 1], ROUTER, &query));
    f.run_for(Duration::from_secs(11));
    let heard = reports(&mut f);
    assert!(heard.contains(&said(131, 0, "ff05::1:3")), "{heard:?}");
    assert!(heard.iter().all(|r| r.0 == 131), "{heard:?}");
    f.stacks[0].udp_close(u);
    f.run_for(Duration::from_secs(11));
    assert_eq!(reports(&mut f), [said(132, 0, "ff02::2")]);
}

/// The record of a report of IGMPv3 or MLDv2: its type and its senders.
fn record(report: &[u8], v6: bool) -> (u8, Vec<IpAddr>) {
    let (size, sources) = if v6 { (16, 28) } else { (4, 16) };
    let count = usize::from(u16::from_be_bytes([report[10], report[11]]));
    let list = report[sources..].chunks_exact(size).map(|bytes| match v6 {
        true => IpAddr::from(<[u8; 16]>::try_from(bytes).unwrap()),
        false => IpAddr::from(<[u8; 4]>::try_from(bytes).unwrap()),
    });
    let list: Vec<IpAddr> = list.collect();
    assert_eq!(list.len(), count);
    (report[8], list)
}

/// The records that were sent since the last time, all of them intact.
fn records(f: &mut Fabric) -> Vec<(u8, Vec<IpAddr>)> {
    let frames = f.tap.replace(Vec::new()).unwrap();
    let mut all = Vec::new();
    for (_, frame) in frames {
        let p = &frame[14..];
        if p[0] >> 4 == 4 && p[9] == 2 {
            let length = usize::from(u16::from_be_bytes([p[2], p[3]]));
            assert_eq!((checksum(&p[24..length]), p[24]), ([0, 0], 0x22));
            all.push(record(&p[24..length], false));
        } else if p[0] >> 4 == 6 && p[6] == 0 {
            let length = usize::from(u16::from_be_bytes([p[4], p[5]]));
            let mld = &p[48..40 + length];
            let end = [0, 0, 0, mld.len() as u8, 0, 0, 0, 58];
            assert_eq!(checksum(&[&p[8..40], &end, mld].concat()), [0, 0]);
            all.push(record(mld, true));
        }
    }
    all
}

#[test]
fn members_hear_the_senders_they_want_and_routers_learn_whom() {
    for v6 in [false, true] {
        let mut f = Fabric::new(&[&[0], &[0], &[0]], &LinkConfig::default(), 4);
        let ids: Vec<UdpId> = (0..3).map(|h| shared(&mut f, h, v6)).collect();
        f.run_for(Duration::from_secs(3));
        f.tap = Some(Vec::new());
        let hosts = [0, 1].map(|host| if v6 { ip6(0, host) } else { ip(0, host) });
        let twin = shared(&mut f, 2, v6);
        let change = |f: &mut Fabric, id, source: IpAddr, change| {
            f.stacks[2].udp_change_source(id, group(v6), None, source, change)
        };
        let heard = |f: &mut Fabric, id| {
            while f.stacks[2].udp_recv(id).is_ok() {}
            let to = Some(SocketAddr::new(group(v6), 5_000));
            for (host, id) in ids.iter().enumerate().take(2) {
                f.stacks[host]
                    .udp_send(f.now, *id, to, &[&[host as u8]])
                    .unwrap();
            }
            f.run_for(Duration::from_secs(3));
            let mut all = Vec::new();
            while let Ok(d) = f.stacks[2].udp_recv(id) {
                all.push(d.data[0]);
            }
            all
        };
        assert_eq!(change(&mut f, ids[2], hosts[1], SourceChange::Join), Ok(()));
        assert_eq!(heard(&mut f, ids[2]), [1]);
        // Who is in no group hears what the interface lets in.
        assert_eq!(heard(&mut f, twin), [1]);
        assert_eq!(records(&mut f), vec![(5, vec![hosts[1]]); 2]);
        f.stacks[2].udp_join(twin, group(v6), None).unwrap();
        assert_eq!(
            (heard(&mut f, twin), heard(&mut f, ids[2])),
            (vec![0, 1], vec![1])
        );
        assert_eq!(records(&mut f), vec![(4, vec![]); 2]);
        assert_eq!(change(&mut f, twin, hosts[0], SourceChange::Block), Ok(()));
        assert_eq!(heard(&mut f, twin), [1]);
        assert_eq!(records(&mut f), vec![(6, vec![hosts[0]]); 2]);
        assert_eq!(
            change(&mut f, ids[2], hosts[1], SourceChange::Leave),
            Ok(())
        );
        f.stacks[2].udp_close(twin);
        f.run_for(Duration::from_secs(3));
        assert_eq!(records(&mut f), vec![(3, vec![]); 2]);
    }
}

#[test]
fn echo_requests_to_groups_stay_unanswered_in_ipv4() {
    let mut f = Fabric::new(&[&[0]], &LinkConfig::default(), 3);
    f.run_for(Duration::from_secs(3));
    f.tap = Some(Vec::new());
    let mut ping = vec![
        0x45, 0, 0, 28, 0, 0, 0, 0, 1, 1, 0, 0, 10, 0, 0, 99, 224, 0, 0, 1,
    ];
    fill_ipv4_checksum(&mut ping);
    ping.extend([8, 0, 0xf7, 0xff, 0, 0, 0, 0]);
    f.inject(0, &frame([1, 0, 0x5e, 0, 0, 1], ROUTER, &ping));
    f.run_for(Duration::from_secs(3));
    assert_eq!(f.tap.take(), Some(Vec::new()), "{}", ip(0, 0));
}
