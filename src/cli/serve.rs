//! `serve`: loads the configuration, starts telemetry, runs the host.

use std::path::PathBuf;

use super::{Exit, complain, runtime};
use crate::host::run::Ending;
use crate::{config, host, telemetry};

pub(super) fn run(files: Vec<PathBuf>) -> Exit {
    let config = match config::load(&files) {
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
    runtime.block_on(async {
        let telemetry = match telemetry::init(&config.telemetry) {
            Ok(guard) => guard,
            Err(error) => {
                complain(error);
                return Exit::Unexpected;
            }
        };
        match host::serve(files, config, telemetry).await {
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
    })
}
