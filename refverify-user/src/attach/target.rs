//! From the words of the command line to guests.

use std::path::PathBuf;

/// A guest, and what is to be watched in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    /// What reports call it.
    pub name: String,
    /// How it is reached.
    pub way: Way,
    /// Devices, as the guest names them.
    pub devices: Vec<String>,
}

/// How a guest is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// By ssh: what its command line takes as destination, and a configuration file where it is
    /// not the user's own.
    Ssh {
        /// `user@host`, an alias, `vsock/2222`.
        destination: String,
        /// For `-F`.
        config: Option<PathBuf>,
    },
    /// By the socket of a virtio-serial port.
    Serial {
        /// The socket.
        socket: PathBuf,
        /// Who starts the agent in the guest; `None` when one speaks on the port already.
        starter: Option<GuestAgent>,
    },
}

/// The QEMU guest agent of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestAgent {
    /// Its socket.
    pub socket: PathBuf,
    /// What the guest calls the port that the stream goes over.
    pub port: String,
}

/// The words mean nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Devices come first.
    #[error("{0} is a device; the guest that it is in comes before it")]
    DeviceFirst(String),
    /// A target without a device.
    #[error("no device is named for {0}; devices follow their guest, and begin with /")]
    NoDevice(String),
    /// ssh would take it for an option.
    #[error("{0} is no guest: its name begins with -")]
    LikeAnOption(String),
    /// The same guest twice would load two agents.
    #[error("{0} is named twice; name all of its devices after it")]
    Twice(String),
    /// There is nothing.
    #[error("no guest is named")]
    Nothing,
}

/// Guests and their devices: a device begins with `/`, and a guest does not. Guests in a row
/// share the devices that follow them.
///
/// # Errors
/// The words cannot be understood so.
pub fn guests(words: &[String], config: Option<&PathBuf>) -> Result<Vec<Guest>, TargetError> {
    let mut guests: Vec<Guest> = Vec::new();
    // The first of those that still take devices.
    let mut open = 0;
    for word in words {
        if word.starts_with('-') {
            return Err(TargetError::LikeAnOption(word.clone()));
        }
        if word.starts_with('/') {
            if guests.is_empty() {
                return Err(TargetError::DeviceFirst(word.clone()));
            }
            guests[open..].iter_mut().for_each(|guest| guest.devices.push(word.clone()));
            continue;
        }
        if guests.last().is_some_and(|guest| !guest.devices.is_empty()) {
            open = guests.len();
        }
        let way = Way::Ssh { destination: word.clone(), config: config.cloned() };
        guests.push(Guest { name: name_of(word), way, devices: Vec::new() });
    }
    check(&guests)?;
    Ok(guests)
}

fn check(guests: &[Guest]) -> Result<(), TargetError> {
    let Some(last) = guests.last() else { return Err(TargetError::Nothing) };
    if last.devices.is_empty() {
        return Err(TargetError::NoDevice(last.name.clone()));
    }
    for (at, guest) in guests.iter().enumerate() {
        if guests[..at].iter().any(|before| before.name == guest.name) {
            return Err(TargetError::Twice(guest.name.clone()));
        }
    }
    Ok(())
}

/// The host in `user@host`.
fn name_of(destination: &str) -> String {
    destination.rsplit('@').next().unwrap_or(destination).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &str) -> Result<Vec<(String, String)>, TargetError> {
        let words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
        let guests = guests(&words, None)?;
        Ok(guests.into_iter().map(|guest| (guest.name, guest.devices.join(" "))).collect())
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, devices)| ((*name).to_owned(), (*devices).to_owned())).collect()
    }

    #[test]
    fn guests_and_devices_are_told_apart_by_the_slash() {
        let one = parsed("root@testvm /dev/vdb /dev/vdc").unwrap();
        assert_eq!(one, pairs(&[("testvm", "/dev/vdb /dev/vdc")]));
        let two = parsed("vsock/2222 /dev/vdb vm2 /dev/vdc").unwrap();
        assert_eq!(two, pairs(&[("vsock/2222", "/dev/vdb"), ("vm2", "/dev/vdc")]));
        let shared = parsed("a b /dev/vdb c /dev/vdc").unwrap();
        assert_eq!(shared, pairs(&[("a", "/dev/vdb"), ("b", "/dev/vdb"), ("c", "/dev/vdc")]));
    }

    #[test]
    fn a_name_that_ssh_would_take_for_an_option_is_refused() {
        let error = parsed("-oProxyCommand=touch${IFS}/tmp/x /dev/vdb").unwrap_err();
        assert!(matches!(error, TargetError::LikeAnOption(_)));
        assert!(matches!(parsed("vm -v"), Err(TargetError::LikeAnOption(_))));
    }

    #[test]
    fn words_that_do_not_fit_are_refused_by_what_is_wrong() {
        assert!(matches!(parsed(""), Err(TargetError::Nothing)));
        assert!(matches!(parsed("/dev/vdb vm"), Err(TargetError::DeviceFirst(_))));
        assert!(matches!(parsed("vm"), Err(TargetError::NoDevice(_))));
        assert!(matches!(parsed("vm /dev/vdb vm2"), Err(TargetError::NoDevice(_))));
        assert!(matches!(parsed("vm /dev/vdb root@vm /dev/vdc"), Err(TargetError::Twice(_))));
    }
}
