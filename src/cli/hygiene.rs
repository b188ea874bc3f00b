//! What a process that holds seeds and tokens denies itself before it does anything else: core dumps, being traced, and
//! new privileges. Whatever the service manager has not done already.

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

use super::complain;

/// Denies all three. What cannot be had is said and is no reason not to start: it protects seeds against other
/// processes of this node, and without the program the control plane does not start.
pub(super) fn deny() {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    let steps = [
        ("core dumps (RLIMIT_CORE)", setrlimit(Resource::Core, none)),
        ("being traced (PR_SET_DUMPABLE)", set_dumpable_behavior(DumpableBehavior::NotDumpable)),
        ("new privileges (PR_SET_NO_NEW_PRIVS)", rustix::thread::set_no_new_privs(true)),
    ];
    for (what, done) in steps {
        if let Err(error) = done {
            complain(format_args!("{what} could not be switched off: {error}"));
        }
    }
}
