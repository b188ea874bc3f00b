//! `serve`: loads the configuration, starts telemetry, runs the host.

use std::path::PathBuf;
use std::time::Duration;

use super::{Exit, complain, runtime};
use crate::host::run::Ending;
use crate::{config, host, telemetry};

/// How long threads that still read have at the end.
const LET_GO: Duration = Duration::from_secs(1);

pub(super) fn run(files: Vec<PathBuf>) -> Exit {
    let watch = host::Watch::new(files);
    let config = match config::load(watch.trying()) {
        Ok(loaded) => loaded.config,
        Err(findings) => {
            complain(findings);
            return Exit::Configuration;
        }
    };
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(format_args!("the runtime cannot start: {error}"));
            return Exit::Runtime;
        }
    };
    let exit = runtime.block_on(async {
        let telemetry = match telemetry::init(&config.telemetry) {
            Ok(guard) => guard,
            Err(error) => {
                complain(error);
                return Exit::Unexpected;
            }
        };
        match host::serve(watch, config, telemetry).await {
            Ending::Signal | Ending::HandedOver => Exit::Ok,
            Ending::NotReady => {
                complain("this process takes no socket over; the one before goes on serving");
                Exit::Runtime
            }
            Ending::NoSocket => {
                complain("no pipeline could get its socket for a minute; the log says why for each");
                Exit::Runtime
            }
            Ending::NoSignals => {
                complain("the process cannot listen for signals");
                Exit::Runtime
            }
        }
    });
    // A file on a volume that hangs is read in a thread that nothing can stop; it must not keep the process.
    runtime.shutdown_timeout(LET_GO);
    exit
}
