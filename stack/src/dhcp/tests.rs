use super::*;
use proptest::prelude::*;

const MAC: EthernetAddress = EthernetAddress([2, 0, 0, 0, 0, 7]);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 254);
const OURS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 50);

fn client(now: Instant) -> Client {
    Client::new(MAC, Key([5; 16]), now)
}

/// The client's next message, and when it came.
fn next(c: &mut Client, now: &mut Instant) -> (DhcpMessageType, Message) {
    *now = c.next_deadline().max(*now);
    let (message, change) = c.poll(*now);
    assert_eq!(change, None);
    let message = message.expect("a message");
    let packet = DhcpPacket::new_checked(&message.bytes[..]).unwrap();
    let repr = DhcpRepr::parse(&packet).unwrap();
    assert_eq!(repr.client_hardware_address, MAC);
    (repr.message_type, message)
}

fn answer(c: &Client, message_type: DhcpMessageType, lease: Option<u32>) -> Vec<u8> {
    let nowhere = Ipv4Addr::UNSPECIFIED;
    let repr = DhcpRepr {
        message_type,
        transaction_id: c.xid,
        secs: 0,
        client_hardware_address: MAC,
        client_ip: nowhere,
        your_ip: OURS,
        server_ip: SERVER,
        router: Some(SERVER),
        subnet_mask: Some(Ipv4Addr::new(255, 255, 255, 0)),
        relay_agent_ip: nowhere,
        broadcast: false,
        requested_ip: None,
        client_identifier: None,
        server_identifier: Some(SERVER),
        parameter_request_list: None,
        dns_servers: Some([SERVER].into_iter().collect()),
        max_size: None,
        lease_duration: lease,
        renew_duration: None,
        rebind_duration: None,
        additional_options: &[],
    };
    let mut bytes = vec![0; repr.buffer_len()];
    repr.emit(&mut DhcpPacket::new_unchecked(&mut bytes[..]))
        .unwrap();
    bytes
}

fn bind(c: &mut Client, now: &mut Instant, lease: u32) -> DhcpLease {
    assert_eq!(next(c, now).0, DhcpMessageType::Discover);
    let offer = answer(c, DhcpMessageType::Offer, Some(lease));
    assert_eq!(c.arrives(&offer, *now), None);
    let (kind, message) = next(c, now);
    assert_eq!(kind, DhcpMessageType::Request);
    assert_eq!(
        (message.src, message.dst),
        (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST)
    );
    let packet = DhcpPacket::new_checked(&message.bytes[..]).unwrap();
    let repr = DhcpRepr::parse(&packet).unwrap();
    assert_eq!(
        (repr.requested_ip, repr.server_identifier),
        (Some(OURS), Some(SERVER))
    );
    let ack = answer(c, DhcpMessageType::Ack, Some(lease));
    match c.arrives(&ack, *now) {
        Some(Change::Granted(lease)) => lease,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_lease_is_got_renewed_rebound_and_lost() {
    let mut now = Instant::from_millis(5);
    let mut c = client(now);
    let lease = bind(&mut c, &mut now, 3_600);
    assert_eq!(
        (lease.address, lease.prefix_len, lease.router),
        (OURS, 24, Some(SERVER))
    );
    assert_eq!(
        (&lease.dns[..], lease.until),
        (&[SERVER][..], now + Duration::from_secs(3_600))
    );
    // Renewal at half, to the server alone.
    let bound = now;
    let (kind, m) = next(&mut c, &mut now);
    assert_eq!(
        (kind, m.src, m.dst),
        (DhcpMessageType::Request, OURS, SERVER)
    );
    assert_eq!(now.since(bound), Duration::from_secs(1_800));
    let ack = answer(&c, DhcpMessageType::Ack, Some(3_600));
    assert!(matches!(c.arrives(&ack, now), Some(Change::Granted(_))));
    // Nobody answers any more: the server, then everybody, then the end.
    let bound = now;
    let mut asked = (0, 0);
    let lost = (0..100).find_map(|_| {
        now = c.next_deadline();
        match c.poll(now) {
            (Some(m), None) if m.dst == SERVER => asked.0 += 1,
            (Some(m), None) => {
                assert_eq!((m.src, m.dst), (OURS, Ipv4Addr::BROADCAST));
                asked.1 += 1;
            }
            (None, change) => return change,
            other => panic!("{other:?}"),
        }
        None
    });
    assert!(matches!(lost, Some(Change::Lost(_))), "{lost:?}");
    assert_eq!(now.since(bound), Duration::from_secs(3_600));
    assert!(asked.0 >= 4 && asked.1 >= 3, "{asked:?}");
    // And from the beginning.
    assert_eq!(c.lease(), None);
    bind(&mut c, &mut now, 60);
}

#[test]
fn a_refusal_and_silence_lead_back_to_the_beginning() {
    let mut now = Instant::from_millis(5);
    let mut c = client(now);
    bind(&mut c, &mut now, 3_600);
    next(&mut c, &mut now);
    let nak = answer(&c, DhcpMessageType::Nak, None);
    assert!(matches!(c.arrives(&nak, now), Some(Change::Lost(_))));
    assert_eq!(next(&mut c, &mut now).0, DhcpMessageType::Discover);
    let offer = answer(&c, DhcpMessageType::Offer, None);
    c.arrives(&offer, now);
    for _ in 0..REQUESTS_MAX {
        assert_eq!(next(&mut c, &mut now).0, DhcpMessageType::Request);
    }
    assert_eq!(next(&mut c, &mut now).0, DhcpMessageType::Discover);
    // Waits double, give or take a second, to a bound.
    let mut waits = Vec::new();
    for _ in 0..8 {
        let before = now;
        next(&mut c, &mut now);
        waits.push(now.since(before).as_secs_f32());
    }
    for (wait, about) in waits.iter().zip([4., 8., 16., 32., 64., 64., 64., 64.]) {
        assert!((wait - about).abs() <= 1., "{waits:?}");
    }
}

#[test]
fn an_endless_lease_rests_and_a_hasty_one_is_slowed() {
    let mut now = Instant::from_millis(5);
    let mut c = client(now);
    let lease = bind(&mut c, &mut now, u32::MAX);
    assert_eq!(
        (lease.until, c.next_deadline()),
        (Instant::FAR_FUTURE, Instant::FAR_FUTURE)
    );
    let mut c = client(now);
    let lease = bind(&mut c, &mut now, 0);
    assert_eq!(lease.until, now + DHCP_LEASE_MIN);
    let (m, given_back) = c.release(now).unwrap();
    assert_eq!((m.src, m.dst, given_back), (OURS, SERVER, lease));
}

proptest! {
    #[test]
    fn strange_answers_break_nothing(
        changes in proptest::collection::vec((any::<u16>(), any::<u8>()), 0..12),
        cut in 0usize..400,
        kind in 0u8..9,
    ) {
        let mut now = Instant::from_millis(5);
        let mut c = client(now);
        next(&mut c, &mut now);
        for message_type in [DhcpMessageType::Offer, DhcpMessageType::from(kind), DhcpMessageType::Ack] {
            let mut bytes = answer(&c, message_type, Some(u32::from(kind) * 1_000));
            for (at, value) in &changes {
                // The transaction id is known to whoever listens.
                let at = 8 + usize::from(*at) % (bytes.len() - 8);
                bytes[at] = *value;
            }
            bytes.truncate(bytes.len().saturating_sub(cut));
            if let Some(Change::Granted(lease)) = c.arrives(&bytes, now) {
                prop_assert!(is_usable(&lease.address) && lease.prefix_len <= 32);
                prop_assert!(lease.until >= now + DHCP_LEASE_MIN);
            }
            c.poll(now);
            prop_assert!(c.next_deadline() > now);
        }
    }
}
