//! Reading an extent tree once.

use std::io;

use refverify_user::{
    check::{CheckConfig, check as read_and_check},
    cli::Check,
    report::CheckReporter,
};

use super::{Fallible, output};

/// Checks and tells on stdout; returns the exit status.
pub(crate) fn check(asked: Check) -> Fallible<u8> {
    let progress = output::start_log_with_progress()?;
    let device = asked.device.display().to_string();
    let reporter = CheckReporter::new(asked.json, device, io::stdout(), progress);
    let config = CheckConfig {
        device: asked.device,
        others: asked.others,
        io_limit_bytes: asked.io_limit,
        dump: asked.dump,
    };
    Ok(read_and_check(&config, reporter)?)
}
