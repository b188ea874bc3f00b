//! What grpc-go does for kube-apiserver: a call that the server has not begun with is made again.

use std::error::Error as _;
use std::time::{Duration, Instant};

use bao_kms_provider::front::client::ClientError;

/// How long the API server waits for a connection that is ready.
const WAIT: Duration = Duration::from_secs(3);

/// Makes the call until the server has processed it.
pub async fn processed<T, F>(call: impl Fn() -> F) -> Result<T, ClientError>
where
    F: Future<Output = Result<T, ClientError>>,
{
    let began = Instant::now();
    loop {
        match call().await {
            Err(error) if not_begun(&error) && began.elapsed() < WAIT => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            outcome => return outcome,
        }
    }
}

/// Whether the server said, or the connection shows, that it has not begun with the call.
fn not_begun(error: &ClientError) -> bool {
    let ClientError::Call(status) = error else {
        return true;
    };
    let mut cause = status.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            return error.is_remote() && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM));
        }
        if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled) {
            return true;
        }
        cause = error.source();
    }
    false
}
