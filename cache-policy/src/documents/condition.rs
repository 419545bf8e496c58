//! The conditions of statements: from which networks requests may come, and whether they must use TLS.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use nar_pack::error::{Error, Result};
use serde::Serialize;

/// Maximum number of hexadecimal digits in the ID of a VPC endpoint.
const MAX_ENDPOINT_DIGITS: usize = 32;

/// The `Condition` of a statement: for each operator, the keys and the values that it compares.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(transparent)]
pub(super) struct Condition(BTreeMap<&'static str, BTreeMap<&'static str, Vec<String>>>);

impl Condition {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn and(mut self, operator: &'static str, key: &'static str, values: Vec<String>) -> Self {
        self.0.entry(operator).or_default().insert(key, values);
        self
    }
}

/// Restrictions on the requests that a policy allows.
#[derive(Debug, Clone, Default)]
pub struct RequestConditions {
    source_ips: Vec<String>,
    vpc_endpoints: Vec<String>,
    /// Whether requests without TLS are denied.
    pub(super) require_tls: bool,
}

impl RequestConditions {
    /// Restricts requests to source addresses or to VPC endpoints; empty lists do not restrict them.
    ///
    /// # Errors
    /// A usage error for an invalid address, range or endpoint ID.
    pub fn new(source_ips: &[String], vpc_endpoints: &[String], require_tls: bool) -> Result<Self> {
        for source_ip in source_ips {
            check_source_ip(source_ip)?;
        }
        for endpoint in vpc_endpoints {
            let digits = endpoint.strip_prefix("vpce-").unwrap_or_default();
            // The condition compares case, and AWS writes lower case.
            let is_hex = !digits.is_empty() && digits.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
            if !is_hex || digits.len() > MAX_ENDPOINT_DIGITS {
                return Err(Error::usage(format!(
                    "invalid VPC endpoint {endpoint:?}: expected vpce- and hexadecimal digits in lower case"
                )));
            }
        }
        Ok(Self { source_ips: source_ips.to_vec(), vpc_endpoints: vpc_endpoints.to_vec(), require_tls })
    }

    /// Returns the condition of a statement that allows something.
    pub(super) fn condition(&self) -> Condition {
        let mut condition = Condition::default();
        if !self.source_ips.is_empty() {
            condition = condition.and("IpAddress", "aws:SourceIp", self.source_ips.clone());
        }
        if !self.vpc_endpoints.is_empty() {
            condition = condition.and("StringEquals", "aws:SourceVpce", self.vpc_endpoints.clone());
        }
        condition
    }
}

/// Accepts an address, or a range that is written with its first address: any other address in front of the slash is
/// probably a typing error in the address or in the number of bits.
fn check_source_ip(text: &str) -> Result {
    let Some(network) = parse_network(text) else {
        return Err(Error::usage(format!(
            "invalid source IP {text:?}: expected an IP address or a CIDR range such as 192.0.2.0/24"
        )));
    };
    if network.addr() != network.network() {
        let error = Error::usage(format!("invalid source IP {text:?}: the address is not the first of its range"));
        return Err(error.with_hint(format!(
            "use {} for the range, or {} for the address",
            network.trunc(),
            network.addr()
        )));
    }
    Ok(())
}

fn parse_network(text: &str) -> Option<IpNet> {
    let Some((address, _)) = text.split_once('/') else { return text.parse::<IpAddr>().ok().map(IpNet::from) };
    // Unlike `IpNet`, `IpAddr` rejects octets with a leading zero, which some systems read as octal.
    address.parse::<IpAddr>().ok()?;
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_ips_are_addresses_or_cidr_ranges() {
        for bad in [
            "",
            "x",
            "192.0.2.0/33",
            "192.0.2.0/+8",
            "192.0.2.0/",
            "2001:db8::/129",
            "*",
            "192.0.2.0/8/8",
            "192.0.2.1/24",
            "192.0.2.0/0",
            "2001:db8::1/64",
            "192.0.2.0/4294967296",
            "010.0.0.0/8",
        ] {
            let error = RequestConditions::new(&[bad.to_owned()], &[], false).unwrap_err();
            assert_eq!(error.exit_status(), 2, "{bad}");
        }
        let good =
            ["0.0.0.0/0", "192.0.2.0/23", "192.0.2.1/32", "192.0.2.1", "::/0", "2001:db8::/32", "2001:db8::1/128"];
        assert!(RequestConditions::new(&good.map(str::to_owned), &[], false).is_ok());
    }

    #[test]
    fn the_hint_for_a_range_names_its_first_address() {
        let error = RequestConditions::new(&["192.0.2.1/24".to_owned()], &[], false).unwrap_err();
        assert_eq!(error.hint(), Some("use 192.0.2.0/24 for the range, or 192.0.2.1 for the address"));
    }

    #[test]
    fn vpc_endpoints_are_ids() {
        for bad in ["", "vpce-", "vpc-1a", "vpce-*", "vpce-1 "] {
            assert_eq!(RequestConditions::new(&[], &[bad.to_owned()], false).unwrap_err().exit_status(), 2, "{bad}");
        }
    }
}
