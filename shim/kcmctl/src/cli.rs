//! The command line.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, ValueParser};
use clap::{Arg, ArgAction, ArgGroup, ArgMatches, Command, value_parser};
use clap_complete::Shell;

use crate::bench::{self, Wanted};
use crate::doctor::Patient;
use crate::pcap::Capture;
use crate::settings::Sources;
use crate::stat::Repeat;
use crate::tracer::Filter;
use crate::wire::HEAD_MAX;
use crate::{Outcome, doctor, explain, export, mux, out, pcap, ps, run, ss, stat, top, trace};

/// Longest pause between two looks: a day.
const INTERVAL_MAX: f64 = 86_400.0;

fn pid() -> Arg {
    Arg::new("pid")
        .value_name("PID")
        .required(true)
        .value_parser(value_parser!(u32))
        .help("Process to look at")
}

fn interval(help: &'static str) -> [Arg; 2] {
    let interval = Arg::new("interval")
        .short('i')
        .long("interval")
        .value_name("SEC");
    let count = Arg::new("count")
        .short('n')
        .long("count")
        .value_name("COUNT");
    [
        interval.value_parser(ValueParser::new(seconds)).help(help),
        count
            .value_parser(value_parser!(u64).range(1..))
            .help("Stop after this many times"),
    ]
}

/// Settings of the stack.
fn stack() -> [Arg; 2] {
    [
        Arg::new("config")
            .long("config")
            .value_name("FILE")
            .value_parser(value_parser!(PathBuf))
            .help("Interfaces and rules of the in-process stack, see kcmshim.toml(5)"),
        Arg::new("stack")
            .long("stack")
            .value_name("LINE")
            .value_parser(value_parser!(OsString))
            .help("Interfaces on one line, as \"packet:eth0 10.9.0.2/24 via 10.9.0.1\""),
    ]
}

/// What narrows a trace.
fn filter() -> [Arg; 9] {
    let number = |name: &'static str, value: &'static str, help: &'static str| {
        let arg = Arg::new(name).long(name).value_name(value).help(help);
        arg.value_parser(value_parser!(u64))
    };
    let switch = |name: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .action(ArgAction::SetTrue)
            .help(help)
    };
    [
        number("mux", "NUMBER", "Only messages of this mux"),
        number(
            "kcm",
            "NUMBER",
            "Only messages of this KCM socket of each mux",
        ),
        number("psock", "NUMBER", "Only messages of this psock of each mux"),
        fd("Only messages of the KCM socket or connection behind this descriptor")
            .long("fd")
            .conflicts_with_all(["mux", "kcm", "psock"]),
        switch("rx", "Only messages received").conflicts_with("tx"),
        switch("tx", "Only messages sent"),
        number("min-length", "BYTES", "Only messages at least this long"),
        number("max-length", "BYTES", "Only messages at most this long"),
        number("count", "COUNT", "Stop after this many messages")
            .short('n')
            .value_parser(value_parser!(u64).range(1..)),
    ]
}

fn given_filter(given: &ArgMatches) -> Filter {
    let number = |name: &str| given.get_one::<u64>(name).copied();
    Filter {
        mux: number("mux"),
        kcm: number("kcm"),
        psock: number("psock"),
        fd: given.get_one("fd").copied(),
        rx_only: given.get_flag("rx"),
        tx_only: given.get_flag("tx"),
        len_min: number("min-length"),
        len_max: number("max-length"),
    }
}

fn fd(help: &'static str) -> Arg {
    Arg::new("fd")
        .value_name("FD")
        .value_parser(value_parser!(i64).range(0..=i64::from(i32::MAX)))
        .help(help)
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) if (0.05..=INTERVAL_MAX).contains(&seconds) => {
            Ok(Duration::from_secs_f64(seconds))
        }
        _ => Err(format!(
            "not a number of seconds from 0.05 to {INTERVAL_MAX}"
        )),
    }
}

fn command() -> Command {
    let json = Arg::new("json")
        .long("json")
        .action(ArgAction::SetTrue)
        .global(true);
    Command::new("kcmctl")
        .version(env!("CARGO_PKG_VERSION"))
        .about("See inside programs that run under kcmshim, and start them")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .arg(json.help("Print JSON, one document a line"))
        .subcommands([
            Command::new("ps").about("List processes that use KCM under kcmshim"),
            Command::new("mux")
                .about("Show a process's KCM sockets and psocks with their counters")
                .arg(pid()),
            Command::new("ss")
                .about("Show the sockets that the stack serves in a process, as ss -tin does")
                .arg(pid()),
            Command::new("stat")
                .about("Show a process's counters since start, or with -i their rates")
                .arg(pid())
                .args(interval("Show rates, a line every SEC seconds")),
            Command::new("top")
                .about("Show all processes by their rates, refreshed")
                .args(interval("Refresh every SEC seconds, 1 if not given")),
            Command::new("explain")
                .about("Say what was decided about each descriptor of a process, and why")
                .arg(pid())
                .arg(fd("Only this descriptor")),
            Command::new("trace")
                .about("Show messages as they pass, until Ctrl-C")
                .arg(pid())
                .args(filter())
                .arg(
                    Arg::new("bytes")
                        .short('b')
                        .long("bytes")
                        .value_name("BYTES")
                        .default_value("16")
                        .value_parser(value_parser!(u64).range(0..=HEAD_MAX as u64))
                        .help("Show this many first bytes of each message"),
                ),
            Command::new("pcap")
                .about("Write messages as they pass to a file for Wireshark, until Ctrl-C")
                .arg(pid())
                .arg(
                    Arg::new("write")
                        .short('w')
                        .long("write")
                        .value_name("FILE")
                        .required(true)
                        .value_parser(value_parser!(PathBuf))
                        .help("File to write, - for standard output"),
                )
                .args(filter())
                .arg(
                    Arg::new("frames")
                        .long("frames")
                        .action(ArgAction::SetTrue)
                        .help("Write the frames of the stack's device instead"),
                )
                .arg(
                    Arg::new("skip")
                        .long("skip")
                        .value_name("BYTES")
                        .default_value("0")
                        .value_parser(value_parser!(u64).range(0..=HEAD_MAX as u64))
                        .help("Leave out this many first bytes, such as a length"),
                )
                .arg(
                    Arg::new("protocol")
                        .long("protocol")
                        .value_name("NAME")
                        .default_value("data")
                        .help("What Wireshark takes messages apart as, such as dns"),
                ),
            Command::new("export").about("Print all counters in the text format of Prometheus"),
            Command::new("bench")
                .about("Measure KCM beside framing by hand, on this machine")
                .arg(
                    Arg::new("svg")
                        .long("svg")
                        .value_name("FILE")
                        .value_parser(value_parser!(PathBuf))
                        .help("Draw a chart as well"),
                )
                .arg(
                    Arg::new("quick")
                        .long("quick")
                        .action(ArgAction::SetTrue)
                        .help("Take seconds instead of half a minute; figures are rough"),
                )
                .arg(
                    Arg::new("only")
                        .long("only")
                        .value_name("TEXT")
                        .default_value("")
                        .hide_default_value(true)
                        .help("Only groups whose title contains this, such as ping-pong"),
                ),
            Command::new("doctor")
                .about("Say what this machine offers, whether a program can run under kcmshim, or how fast the stack is")
                .arg(
                    Arg::new("program")
                        .value_name("PROGRAM")
                        .value_parser(value_parser!(PathBuf))
                        .help("Program to look into"),
                )
                .arg(
                    Arg::new("measure")
                        .long("measure")
                        .action(ArgAction::SetTrue)
                        .help("Measure whether the stack is faster than the kernel's here"),
                )
                .args(stack().map(|arg| arg.conflicts_with("program")))
                .group(ArgGroup::new("what").args(["program", "measure"])),
            Command::new("run")
                .about("Run a program under kcmshim")
                .args(stack())
                .arg(
                    Arg::new("log")
                        .long("log")
                        .value_name("LEVEL")
                        .value_parser(PossibleValuesParser::new([
                            "off", "error", "warn", "info", "debug",
                        ]))
                        .help("How much the library says on standard error"),
                )
                .arg(
                    Arg::new("words")
                        .value_name("PROGRAM")
                        .required(true)
                        .num_args(1..)
                        .trailing_var_arg(true)
                        .allow_hyphen_values(true)
                        .value_parser(value_parser!(OsString))
                        .help("Program and its arguments, best after --"),
                ),
            Command::new("completions")
                .about("Print completions for a shell")
                .arg(
                    Arg::new("shell")
                        .value_name("SHELL")
                        .required(true)
                        .value_parser(value_parser!(Shell)),
                ),
        ])
}

/// Does what the command line says.
pub(crate) fn dispatch() -> Outcome<ExitCode> {
    let matches = match command().try_get_matches() {
        Ok(matches) => matches,
        Err(err) => {
            // Help goes to standard output, which may be closed; the exit code says the rest.
            let _ = err.print();
            return Ok(ExitCode::from(u8::try_from(err.exit_code()).unwrap_or(2)));
        }
    };
    let json = matches.get_flag("json");
    let Some((name, given)) = matches.subcommand() else {
        return Ok(ExitCode::from(2)); // clap requires one
    };
    let pid = || given.get_one::<u32>("pid").copied().unwrap_or(0);
    match name {
        "ps" => ps::ps(json),
        "mux" => mux::mux(pid(), json),
        "ss" => ss::ss(pid(), json),
        "stat" => match repeat(given) {
            Some(repeat) => stat::rates(pid(), &repeat, json),
            None => stat::totals(pid(), json),
        },
        "top" => {
            let second = Repeat {
                interval: Duration::from_secs(1),
                count: given.get_one("count").copied(),
            };
            top::top(&repeat(given).unwrap_or(second), json)
        }
        "explain" => explain::explain(pid(), given.get_one("fd").copied(), json),
        "trace" => {
            let bytes = given.get_one("bytes").copied().unwrap_or(0);
            let count = given.get_one("count").copied();
            trace::trace(pid(), &given_filter(given), bytes, count, json)
        }
        "pcap" => {
            let text = |name: &str| given.get_one::<String>(name).map_or("", String::as_str);
            pcap::pcap(
                pid(),
                &Capture {
                    file: given
                        .get_one::<PathBuf>("write")
                        .map_or(Path::new("-"), |p| p),
                    filter: given_filter(given),
                    count: given.get_one("count").copied(),
                    protocol: text("protocol"),
                    frames: given.get_flag("frames"),
                    skip: given
                        .get_one::<u64>("skip")
                        .map_or(0, |skip| *skip as usize),
                },
            )
        }
        "export" => export::export(json),
        "doctor" => {
            let (config, stack) = (given.get_one("config"), given.get_one("stack"));
            let is_asked = given.get_flag("measure") || config.is_some() || stack.is_some();
            let patient = match given.get_one::<PathBuf>("program") {
                Some(program) => Patient::Program(program),
                None if is_asked => Patient::Devices(Sources::given(config, stack)?),
                None => Patient::Machine,
            };
            doctor::doctor(&patient, json)
        }
        "bench" => bench::bench(&Wanted {
            quick: given.get_flag("quick"),
            only: given.get_one::<String>("only").map_or("", String::as_str),
            svg: given.get_one::<PathBuf>("svg").map(PathBuf::as_path),
            as_json: json,
        }),
        "run" => {
            let words = given.get_many::<OsString>("words").into_iter().flatten();
            let words: Vec<&OsStr> = words.map(OsString::as_os_str).collect();
            let wanted = run::Wanted {
                settings: Sources::given(given.get_one("config"), given.get_one("stack"))?,
                log: given.get_one::<String>("log").map(String::as_str),
            };
            run::run(&words, &wanted, json)
        }
        _ => completions(given),
    }?;
    Ok(ExitCode::SUCCESS)
}

fn repeat(given: &ArgMatches) -> Option<Repeat> {
    let interval = *given.get_one::<Duration>("interval")?;
    Some(Repeat {
        interval,
        count: given.get_one("count").copied(),
    })
}

fn completions(given: &ArgMatches) -> Outcome<()> {
    let mut text = Vec::new();
    if let Some(shell) = given.get_one::<Shell>("shell") {
        clap_complete::generate(*shell, &mut command(), "kcmctl", &mut text);
    }
    out::print(&String::from_utf8_lossy(&text))
}
