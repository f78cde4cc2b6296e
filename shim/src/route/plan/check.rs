//! What no single value shows: whether the parts fit together.

use std::net::IpAddr;

use kcm_stack::limits::{ADDRESSES_MAX, ROUTES_MAX};

use super::{Interface, Problems, RoleName, Rule, Settings, Use, quoted};

/// Checks settings whose values are fine one by one. `file` is where rules stand.
pub(super) fn whole(settings: &Settings, file: &str, problems: &mut Problems) {
    if settings.interfaces.is_empty() {
        problems.add(file, "no interface is given: the stack needs a device");
    }
    for (at, interface) in settings.interfaces.iter().enumerate() {
        let device = quoted(&interface.device);
        let earlier = settings.interfaces.iter().take(at);
        for other in earlier {
            if other.device == interface.device {
                problems.add(file, format!("device {device} is given twice"));
            }
            if let Some(twice) = interface.addresses.iter().find(|address| {
                let theirs = &other.addresses;
                theirs.iter().any(|theirs| theirs.ip == address.ip)
            }) {
                let what = format!("{device}: another interface has {} too", twice.ip);
                problems.add(file, what);
            }
        }
        for what in interface_problems(interface) {
            problems.add(file, format!("{device}: {what}"));
        }
    }
    for rule in &settings.rules {
        for what in rule_problems(rule, settings) {
            let place = format!("{file}:{}", rule.line);
            problems.add(place, format!("{}: {what}", rule.name));
        }
    }
}

fn interface_problems(interface: &Interface) -> Vec<String> {
    let mut found = Vec::new();
    if interface.addresses.is_empty() && !interface.dhcp {
        found.push("no address is given, neither as 10.9.0.2/24 nor by dhcp".to_owned());
    }
    if interface.addresses.len() > ADDRESSES_MAX {
        found.push(format!("more than {ADDRESSES_MAX} addresses"));
    }
    if interface.routes.len() + interface.gateways.len() + interface.addresses.len() > ROUTES_MAX {
        found.push(format!("more than {ROUTES_MAX} routes"));
    }
    for family in [IpAddr::is_ipv4, IpAddr::is_ipv6] {
        if interface.gateways.iter().filter(|ip| family(ip)).count() > 1 {
            found.push("more than one default gateway of one family".to_owned());
        }
    }
    for router in &interface.gateways {
        found.extend(router_problem(interface, *router));
    }
    for route in &interface.routes {
        let Some(router) = route.via else { continue };
        if router.is_ipv4() != route.to.ip.is_ipv4() {
            let to = route.to;
            found.push(format!("the route to {to} has a router of another family"));
        }
        found.extend(router_problem(interface, router));
    }
    found
}

/// A router that no prefix of the interface reaches is reached by nobody.
fn router_problem(interface: &Interface, router: IpAddr) -> Option<String> {
    let link_local = matches!(router, IpAddr::V6(ip) if ip.is_unicast_link_local());
    let on_link = |p: &super::Prefix| p.contains(router);
    let direct = interface.routes.iter().filter(|route| route.via.is_none());
    let reached = link_local
        || interface.dhcp && router.is_ipv4()
        || interface.addresses.iter().any(on_link)
        || direct.map(|route| &route.to).any(on_link);
    (!reached).then(|| format!("no prefix of the interface covers the router {router}"))
}

fn rule_problems(rule: &Rule, settings: &Settings) -> Vec<String> {
    let mut found = Vec::new();
    if rule.serve == Use::Both && (rule.roles.is_empty() || rule.roles.contains(&RoleName::Connect))
    {
        let what = "use = \"both\" is for sockets bound to 0.0.0.0 or ::; \
                    give the rule role = \"listen\" or \"udp\"";
        found.push(what.to_owned());
    }
    if matches!(rule.serve, Use::Stack | Use::Both)
        && let Some(loopback) = rule.addresses.iter().find(|p| p.ip.is_loopback())
    {
        found.push(format!("{loopback}: loopback addresses are the kernel's"));
    }
    if let Some(device) = &rule.device {
        if !settings.interfaces.iter().any(|i| i.device == *device) {
            let known = settings.interfaces.iter().map(|i| quoted(&i.device));
            let known = known.collect::<Vec<_>>().join(", ");
            found.push(format!(
                "interface = {} is none of the interfaces: {known}",
                quoted(device)
            ));
        }
        if !matches!(rule.serve, Use::Stack | Use::Both) {
            found.push("interface needs use = \"stack\" or \"both\"".to_owned());
        }
    }
    if rule.on_failure.is_some() && !matches!(rule.serve, Use::Stack | Use::Both) {
        found.push("on_failure needs use = \"stack\" or \"both\"".to_owned());
    }
    found
}
