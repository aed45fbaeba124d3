//! Being the agent in a guest.

use std::{fs::File, io, path::Path, thread, time::Duration};

use refverify_user::{agent::Agent, cli, serve::serve};
use rustix::event::{PollFd, PollFlags, poll};
use tokio::fs::File as PortFile;

use super::{Fallible, agent_config, output::start_log, runtime};

/// Between looks at a port to which nobody has connected.
const PORT_PAUSE: Duration = Duration::from_millis(200);

/// Speaks to a verifier elsewhere.
pub(crate) fn agent(asked: cli::Agent) -> Fallible<u8> {
    start_log()?;
    let port = asked.port.as_deref().map(connected_port).transpose()?;
    let agent = Agent::start(agent_config(&asked.probes, asked.devices))?;
    let runtime = runtime()?;
    let served = runtime.block_on(async {
        match port {
            None => serve(agent, tokio::io::stdin(), tokio::io::stdout()).await,
            Some((input, output)) => serve(agent, input, output).await,
        }
    });
    // A read of stdin that never ends must not hold this up.
    runtime.shutdown_background();
    served?;
    Ok(0)
}

/// Opens a virtio-serial port twice, for reading and for writing, once there is somebody at its
/// other end: until then it reads as if it had ended.
fn connected_port(path: &Path) -> Fallible<(PortFile, PortFile)> {
    let failed = |error: io::Error| format!("cannot use the port {}: {error}", path.display());
    let file = File::options().read(true).write(true).open(path).map_err(failed)?;
    loop {
        let mut ports = [PollFd::new(&file, PollFlags::OUT)];
        poll(&mut ports, None).map_err(|error| failed(error.into()))?;
        if !ports[0].revents().contains(PollFlags::HUP) {
            break;
        }
        thread::sleep(PORT_PAUSE);
    }
    let again = file.try_clone().map_err(failed)?;
    Ok((again.into(), file.into()))
}
