//! The TOML file that `KCMSHIM_CONFIG` names.

use std::net::IpAddr;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::words::{self, Word};
use super::{
    FILE_BYTES_MAX, INTERFACES_MAX, Interface, Problems, RULES_MAX, Route, Rule, Settings, Use,
    quoted,
};

/// Adds what `text` says to `settings`.
pub(super) fn read(name: &str, text: &[u8], settings: &mut Settings, problems: &mut Problems) {
    if text.len() > FILE_BYTES_MAX {
        problems.add(name, format!("longer than {FILE_BYTES_MAX} bytes"));
        return;
    }
    let text = match str::from_utf8(text) {
        Ok(text) => text,
        Err(err) => {
            let line = line_of(text, err.valid_up_to());
            problems.add(format!("{name}:{line}"), "not UTF-8 text");
            return;
        }
    };
    let mut file = File {
        name,
        text: text.as_bytes(),
        problems,
    };
    match DeTable::parse(text) {
        Ok(root) => file.root(root.get_ref(), settings),
        Err(err) => {
            let at = err.span().map_or(text.len(), |span| span.start);
            let said = err.message().replace('\n', ", ");
            file.problem(at, &said);
        }
    }
}

/// Line, from 1, of a position.
fn line_of(text: &[u8], at: usize) -> usize {
    let before = text.get(..at).unwrap_or(text);
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}

type Value<'i> = Spanned<DeValue<'i>>;

struct File<'f> {
    name: &'f str,
    text: &'f [u8],
    problems: &'f mut Problems,
}

impl File<'_> {
    fn problem(&mut self, at: usize, what: &str) {
        let line = line_of(self.text, at);
        self.problems.add(format!("{}:{line}", self.name), what);
    }

    fn root(&mut self, root: &DeTable<'_>, settings: &mut Settings) {
        for (key, value) in in_order(root) {
            match key.get_ref().as_ref() {
                "interface" => {
                    for (_, table) in self.tables("interface", value, INTERFACES_MAX) {
                        settings.interfaces.extend(self.interface(table));
                    }
                }
                "rule" => {
                    for (count, (at, table)) in self
                        .tables("rule", value, RULES_MAX)
                        .into_iter()
                        .enumerate()
                    {
                        let rule = self.rule(count + 1, at, table);
                        settings.rules.extend(rule);
                    }
                }
                "defaults" => match value.get_ref().as_table() {
                    Some(table) => self.defaults(table, settings),
                    None => self.problem(value.span().start, "defaults is a table: [defaults]"),
                },
                _ => self.unknown("", key, "[[interface]], [[rule]], [defaults]"),
            }
        }
    }

    /// The tables of `[[name]]`, each with where it begins.
    fn tables<'v, 'i>(
        &mut self,
        name: &str,
        value: &'v Value<'i>,
        max: usize,
    ) -> Vec<(usize, &'v DeTable<'i>)> {
        let tables: Option<Vec<_>> = value.get_ref().as_array().and_then(|array| {
            let entries = array.iter();
            entries
                .map(|entry| Some((entry.span().start, entry.get_ref().as_table()?)))
                .collect()
        });
        match tables {
            Some(tables) if tables.len() <= max => return tables,
            Some(_) => self.problem(value.span().start, &format!("more than {max} [[{name}]]")),
            None => {
                let what = format!("{name} is an array of tables: [[{name}]]");
                self.problem(value.span().start, &what);
            }
        }
        Vec::new()
    }

    fn unknown(&mut self, section: &str, key: &Spanned<DeString<'_>>, allowed: &str) {
        let what = format!(
            "{section}{} is not known; allowed: {allowed}",
            quoted(key.get_ref())
        );
        self.problem(key.span().start, &what);
    }

    fn interface(&mut self, table: &DeTable<'_>) -> Option<Interface> {
        const KEYS: &str = "device, addresses, dhcp, gateway, mtu, queues, offloads, faults, route";
        let mut made = Interface::new(String::new());
        for (key, value) in in_order(table) {
            let name = key.get_ref().as_ref();
            match name {
                "device" => made.device = self.text(name, value, words::device).unwrap_or_default(),
                "addresses" => made.addresses = self.texts(name, value, words::address),
                "dhcp" => made.dhcp = self.flag(name, value),
                "gateway" => made.gateways = self.texts(name, value, words::router),
                "mtu" => made.mtu = self.number(name, value, words::mtu),
                "queues" => made.queues = self.number(name, value, words::queues).unwrap_or(1),
                "offloads" => made.offloads = self.flag(name, value),
                "faults" => {
                    made.faults = self.number(name, value, words::faults).unwrap_or(0);
                }
                "route" => {
                    for (at, table) in self.tables("interface.route", value, usize::MAX) {
                        made.routes.extend(self.route(at, table));
                    }
                }
                _ => self.unknown("interface.", key, KEYS),
            }
        }
        if made.device.is_empty() {
            if table.get("device").is_none() {
                let at = first(table);
                let what = "interface.device is missing, as device = \"packet:eth0\"";
                self.problem(at, what);
            }
            return None;
        }
        Some(made)
    }

    fn route(&mut self, at: usize, table: &DeTable<'_>) -> Option<Route> {
        let mut to = None;
        let mut via: Option<IpAddr> = None;
        for (key, value) in in_order(table) {
            let name = key.get_ref().as_ref();
            match name {
                "to" => to = self.text(name, value, words::network),
                "via" => via = self.text(name, value, words::router),
                _ => self.unknown("interface.route.", key, "to, via"),
            }
        }
        if table.get("to").is_none() {
            self.problem(at, "interface.route.to is missing, as to = \"10.0.0.0/8\"");
        }
        Some(Route { to: to?, via })
    }

    fn rule(&mut self, count: usize, at: usize, table: &DeTable<'_>) -> Option<Rule> {
        const KEYS: &str = "name, program, role, address, port, use, interface, on_failure";
        let mut made = Rule {
            name: format!("rule {count}"),
            line: line_of(self.text, at),
            programs: Vec::new(),
            roles: Vec::new(),
            addresses: Vec::new(),
            ports: Vec::new(),
            serve: Use::Kernel,
            device: None,
            on_failure: None,
        };
        let mut serve = None;
        for (key, value) in in_order(table) {
            let name = key.get_ref().as_ref();
            match name {
                "name" => made.name = self.text(name, value, any).unwrap_or_default(),
                "program" => made.programs = self.texts(name, value, any),
                "role" => made.roles = self.texts(name, value, words::role),
                "address" => made.addresses = self.texts(name, value, words::network),
                "port" => made.ports = self.ports(name, value),
                "use" => serve = self.text(name, value, words::serve),
                "interface" => made.device = self.text(name, value, words::device),
                "on_failure" => made.on_failure = self.text(name, value, words::on_failure),
                _ => self.unknown("rule.", key, KEYS),
            }
        }
        if table.get("use").is_none() {
            let what = "rule.use is missing: \"stack\", \"kernel\", \"both\", \"refuse\"";
            self.problem(at, what);
        }
        made.serve = serve?;
        Some(made)
    }

    fn defaults(&mut self, table: &DeTable<'_>, settings: &mut Settings) {
        for (key, value) in in_order(table) {
            let name = key.get_ref().as_ref();
            match name {
                "wildcard" => settings.wildcard = self.text(name, value, words::wildcard),
                "on_failure" => settings.on_failure = self.text(name, value, words::on_failure),
                _ => self.unknown("defaults.", key, "wildcard, on_failure"),
            }
        }
    }

    /// Takes what `word` made of a value, or tells why it could not.
    fn take<T>(&mut self, key: &str, value: &Value<'_>, word: Word<T>) -> Option<T> {
        match word {
            Ok(taken) => Some(taken),
            Err(what) => {
                self.problem(value.span().start, &format!("{key}: {what}"));
                None
            }
        }
    }

    fn text<T>(
        &mut self,
        key: &str,
        value: &Value<'_>,
        word: impl Fn(&str) -> Word<T>,
    ) -> Option<T> {
        let made = match value.get_ref().as_str() {
            Some(text) => word(text),
            None => Err("a text in quotes is expected".to_owned()),
        };
        self.take(key, value, made)
    }

    /// One text, or an array of them.
    fn texts<T>(&mut self, key: &str, value: &Value<'_>, word: impl Fn(&str) -> Word<T>) -> Vec<T> {
        let mut made = Vec::new();
        match value.get_ref().as_array() {
            Some(array) => {
                if array.is_empty() {
                    self.problem(value.span().start, &format!("{key}: an empty list"));
                }
                for entry in array.iter() {
                    made.extend(self.text(key, entry, &word));
                }
            }
            None => made.extend(self.text(key, value, word)),
        }
        made
    }

    fn number<T>(
        &mut self,
        key: &str,
        value: &Value<'_>,
        word: impl Fn(i64) -> Word<T>,
    ) -> Option<T> {
        let number = integer(value.get_ref());
        let made = number.map_or_else(|| Err("a number is expected".to_owned()), word);
        self.take(key, value, made)
    }

    fn flag(&mut self, key: &str, value: &Value<'_>) -> bool {
        let flag = value.get_ref().as_bool();
        let made = flag.ok_or_else(|| "true or false is expected".to_owned());
        self.take(key, value, made).unwrap_or_default()
    }

    /// A number, a range as text, or an array of these.
    fn ports(&mut self, key: &str, value: &Value<'_>) -> Vec<(u16, u16)> {
        let one = |value: &Value<'_>| match value.get_ref() {
            DeValue::String(text) => words::ports(text),
            other => match integer(other) {
                Some(number) => words::port(number),
                None => Err("a port or a range as \"8000-8099\" is expected".to_owned()),
            },
        };
        let Some(array) = value.get_ref().as_array() else {
            let made = one(value);
            return self.take(key, value, made).into_iter().collect();
        };
        if array.is_empty() {
            self.problem(value.span().start, &format!("{key}: an empty list"));
        }
        let mut made = Vec::new();
        for entry in array.iter() {
            let port = one(entry);
            made.extend(self.take(key, entry, port));
        }
        made
    }
}

/// Text without a form of its own.
fn any(text: &str) -> Word<String> {
    if text.is_empty() {
        Err("an empty text".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

fn integer(value: &DeValue<'_>) -> Option<i64> {
    let integer = value.as_integer()?;
    i64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

/// Entries as the file has them, so that problems come in its order.
fn in_order<'t, 'i>(table: &'t DeTable<'i>) -> Vec<(&'t Spanned<DeString<'i>>, &'t Value<'i>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

/// Where a table's first entry stands.
fn first(table: &DeTable<'_>) -> usize {
    table.keys().map(|key| key.span().start).min().unwrap_or(0)
}
