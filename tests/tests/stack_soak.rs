//! A service on the stack under load on a wire with faults: threads, forked workers, killed workers and
//! programs with connections of their own, at the same time and again and again.

use std::env;
use std::io::{self, Write};

use kcm_tests::netlab::{GUEST, Lab, PEER};
use kcm_tests::program;
use kcm_tests::server::Server;

/// `SOAK_SECONDS` is how long each takes; ci/soak sets it.
const SECONDS: &str = "3";

fn soak(words: &str) {
    let seconds = env::var("SOAK_SECONDS").unwrap_or_else(|_| SECONDS.into());
    let program = program::build("stack_soak", &[]);
    let lab = Lab::new(false);
    let mut guest = lab.on_stack_with(words, &program);
    let server = Server::start(guest.args(["serve", GUEST, PEER]));
    let mut peer = lab.on_peer(&program);
    peer.args(["call", GUEST, PEER, &seconds]);
    let (_peer, called) = Server::start_until(peer, |line| line == "done");
    let served = server.end();
    assert!(served.ends_with("done\n"), "{served}");
    let _ = write!(io::stdout(), "{words}: {called}{served}");
}

#[test]
fn a_service_goes_on() {
    if kcm_tests::netlab::is_runnable() {
        soak("faults=1");
    }
}

#[test]
fn a_service_on_several_engines_goes_on() {
    if kcm_tests::netlab::is_runnable() {
        soak("queues=2 faults=1");
    }
}
