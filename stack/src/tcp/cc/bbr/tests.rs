use super::*;

const MSS: u32 = 1_000;

/// A path of 10 bytes/µs and 10 ms, on which each ACK delivers one segment.
fn ack(step: u32, app_limited: bool) -> BbrAck {
    BbrAck {
        now: Instant::from_micros(1_000_000 + u64::from(step) * 100),
        rate: Some(RateSample {
            bytes: 100_000,
            interval_us: 10_000,
            prior: step.saturating_sub(100) * MSS,
            app_limited,
        }),
        rtt_us: Some(10_000),
        acked: MSS,
        lost: 0,
        pipe: 100_000,
        delivered: step * MSS,
        mss: MSS,
        phase: Phase::Open,
    }
}

fn run(steps: core::ops::Range<u32>, bbr: &mut Bbr, w: &mut Window) {
    steps.for_each(|n| bbr.on_ack(w, &ack(n, false)));
}

fn start() -> (Bbr, Window) {
    let now = Instant::from_micros(1_000_000);
    (Bbr::new(10 * MSS, 10_000, now), Window::initial(MSS))
}

#[test]
fn a_full_pipe_ends_startup_and_bounds_the_window_by_twice_the_product() {
    let (mut bbr, mut w) = start();
    assert_eq!(bbr.mode, Mode::Startup);
    run(1..2_000, &mut bbr, &mut w);
    assert_eq!(bbr.mode, Mode::ProbeBandwidth);
    // 100 segments fill the path; three bursts of 1 ms come on top.
    assert!((220 * MSS..=242 * MSS).contains(&w.cwnd), "{}", w.cwnd);
    let rate = bbr.pacing_rate() as f64 / 10e6;
    assert!((0.74..=1.25).contains(&rate), "{rate}");
}

#[test]
fn loss_does_not_lower_the_model_and_recovery_gives_the_window_back() {
    let (mut bbr, mut w) = start();
    run(1..2_000, &mut bbr, &mut w);
    let (cwnd, bandwidth) = (w.cwnd, bbr.bandwidth.get());
    bbr.save_window(&w);
    let mut lossy = ack(2_000, false);
    lossy.phase = Phase::Recovery;
    lossy.lost = 20 * MSS;
    bbr.on_ack(&mut w, &lossy);
    assert_eq!(w.cwnd, lossy.pipe + lossy.acked, "conserves packets");
    run(2_001..2_002, &mut bbr, &mut w);
    // The bursts it has room for change with the gain.
    assert!(w.cwnd >= cwnd - 16 * MSS, "{} {cwnd}", w.cwnd);
    assert_eq!(bbr.bandwidth.get(), bandwidth);
}

#[test]
fn a_recovery_that_follows_another_at_once_does_not_conserve_again() {
    let (mut bbr, mut w) = start();
    run(1..2_000, &mut bbr, &mut w);
    bbr.save_window(&w);
    let lossy = |n: u32| {
        let mut a = ack(n, false);
        a.phase = Phase::Recovery;
        a
    };
    bbr.on_ack(&mut w, &lossy(2_000));
    assert!(bbr.conserve);
    (2_001..2_200).for_each(|n| bbr.on_ack(&mut w, &lossy(n)));
    assert!(!bbr.conserve, "one round only");
    let cwnd = w.cwnd;
    // The next episode begins with the ACK that ends the first: no ACK came between the two.
    bbr.save_window(&w);
    bbr.on_ack(&mut w, &lossy(2_200));
    assert!(!bbr.conserve && w.cwnd >= cwnd, "{} {cwnd}", w.cwnd);
}

#[test]
fn an_application_that_says_little_does_not_lower_the_bandwidth() {
    let (mut bbr, mut w) = start();
    run(1..2_000, &mut bbr, &mut w);
    let bandwidth = bbr.bandwidth.get();
    for n in 2_000..6_000 {
        let mut a = ack(n, true);
        if let Some(rate) = &mut a.rate {
            rate.bytes = 1_000;
        }
        bbr.on_ack(&mut w, &a);
    }
    assert_eq!(bbr.bandwidth.get(), bandwidth);
}

#[test]
fn an_old_round_trip_is_measured_again_with_a_small_flight() {
    let (mut bbr, mut w) = start();
    run(1..2_000, &mut bbr, &mut w);
    let late = |n: u32, pipe: u32| {
        let mut a = ack(n, false);
        a.now = a.now.plus_us(MIN_RTT_US);
        a.rtt_us = Some(12_000);
        a.pipe = pipe;
        a
    };
    bbr.on_ack(&mut w, &late(2_000, 100_000));
    assert_eq!(
        (bbr.mode, w.cwnd),
        (Mode::ProbeRtt, CWND_SEGMENTS_MIN * MSS)
    );
    (2_001..6_000).for_each(|n| bbr.on_ack(&mut w, &late(n, 2 * MSS)));
    assert_eq!(bbr.mode, Mode::ProbeBandwidth);
    assert_eq!(bbr.min_rtt_us, 12_000);
    assert!(w.cwnd > 100 * MSS, "{}", w.cwnd);
}

#[test]
fn acks_in_bunches_widen_the_window_until_they_come_evenly_again() {
    let (mut bbr, mut w) = start();
    run(1..2_000, &mut bbr, &mut w);
    let even = w.cwnd;
    // The same rate, but the thread that reads ACKs sleeps for 5 ms at a time.
    let bunched = |n: u32| {
        let mut a = ack(n, false);
        a.now = Instant::from_micros(1_000_000 + u64::from(n.next_multiple_of(50)) * 100);
        a
    };
    (2_000..4_000).for_each(|n| bbr.on_ack(&mut w, &bunched(n)));
    assert!(w.cwnd >= even + 30 * MSS, "{} {even}", w.cwnd);
    // No path delivers at its best all the time, so bunches are caught up with.
    (4_000..8_000).for_each(|n| {
        let mut a = ack(n, false);
        a.now = a.now.plus_us(u64::from(n - 4_000) * 2);
        bbr.on_ack(&mut w, &a);
    });
    assert!(w.cwnd <= even + 20 * MSS, "{} {even}", w.cwnd);
}

#[test]
fn what_leaves_at_once_lasts_a_millisecond_and_is_two_segments_at_least() {
    let (mut bbr, mut w) = start();
    run(1..2_000, &mut bbr, &mut w);
    let quantum = bbr.send_quantum(MSS);
    assert!((7 * MSS..=12 * MSS).contains(&quantum), "{quantum}");
    assert_eq!(bbr.burst(MSS), MSS, "a segment is enough for 100 µs");
    bbr.pacing = 50.0;
    assert_eq!(bbr.burst(MSS), 5 * MSS);
    bbr.pacing = 0.2;
    assert_eq!(bbr.send_quantum(MSS), 2 * MSS);
    bbr.pacing = 0.1;
    assert_eq!(bbr.send_quantum(MSS), MSS);
    bbr.pacing = 10_000.0;
    assert!(bbr.send_quantum(MSS) <= QUANTUM_BYTES_MAX);
}

#[test]
fn a_silence_of_the_applications_is_no_reason_to_measure_the_round_trip() {
    let (mut bbr, mut w) = start();
    run(1..2_000, &mut bbr, &mut w);
    let mut late = ack(2_000, false);
    late.now = late.now.plus_us(2 * MIN_RTT_US);
    bbr.on_restart();
    bbr.on_ack(&mut w, &late);
    assert_eq!(bbr.mode, Mode::ProbeBandwidth);
}
