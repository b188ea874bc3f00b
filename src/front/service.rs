//! KMS v2 in and out: messages become our own words, our answers become messages, and a panic in one call becomes one
//! Internal answer.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use secrecy::ExposeSecret;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::{Request as Message, Response as Answer, Status};
use tower::ServiceExt;

use super::status_code::status;
use super::v2::key_management_service_server::KeyManagementService;
use super::v2::{DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse};
use crate::error::{Class, Error};
use crate::key::KeyState;
use crate::request::{Context, KmsService, Operation, Request, Response, TraceContext, secret};
use crate::telemetry::events;
use crate::telemetry::metrics::PipelineMetrics;

/// The protocol version that Status names; kube-apiserver accepts no change of it within its life.
const VERSION: &str = "v2";
/// kube-apiserver's uids have 36 characters; more is somebody else's.
const MAX_UID: usize = 128;

/// The three calls of one pipeline.
pub(super) struct Kms {
    pub(super) pipeline: Arc<str>,
    pub(super) key: Arc<KeyState>,
    pub(super) kms: KmsService,
    pub(super) metrics: Arc<PipelineMetrics>,
}

// === impl Kms ===

impl Kms {
    async fn run(&self, operation: Operation, uid: &str, metadata: &MetadataMap) -> Result<Response, Status> {
        let request = Request { operation, context: context(uid, metadata) };
        let answer = self.guarded(request).await;
        answer.map_err(|error| {
            tracing::debug!(pipeline = &*self.pipeline, class = error.class().name(), "{error}");
            status(&error)
        })
    }

    async fn guarded(&self, request: Request) -> Result<Response, Error> {
        let caught = AssertUnwindSafe(self.kms.clone().oneshot(request)).catch_unwind().await;
        // What it carried may hold anything and is dropped.
        caught.unwrap_or_else(|_| {
            self.metrics.panicked();
            tracing::error!(event = events::PANIC, pipeline = &*self.pipeline, "a call panicked; please report this");
            Err(Error::new(Class::Internal, "a call panicked"))
        })
    }
}

fn context(uid: &str, metadata: &MetadataMap) -> Context {
    let safe: Arc<str> = if uid.len() <= MAX_UID && uid.bytes().all(|byte| byte.is_ascii_graphic()) {
        uid.into()
    } else {
        uid.chars().filter(char::is_ascii_graphic).take(MAX_UID).collect::<String>().into()
    };
    let header = |name: &str| metadata.get(name).and_then(|value| value.to_str().ok());
    let trace = header("traceparent").map(|parent| TraceContext {
        parent: parent.to_owned(),
        state: header("tracestate").unwrap_or_default().to_owned(),
    });
    Context { patience: header("grpc-timeout").and_then(patience), trace, ..Context::new(safe) }
}

/// `grpc-timeout`: at most 8 digits and a unit (gRPC over HTTP/2).
fn patience(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3_600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[tonic::async_trait]
impl KeyManagementService for Kms {
    async fn status(&self, _: Message<StatusRequest>) -> Result<Answer<StatusResponse>, Status> {
        let report = self.key.status(Instant::now());
        self.metrics.status_answered(report.healthz);
        Ok(Answer::new(StatusResponse {
            version: VERSION.to_owned(),
            healthz: report.healthz.to_owned(),
            key_id: report.key_id.map(|id| id.as_str().to_owned()).unwrap_or_default(),
        }))
    }

    async fn decrypt(&self, message: Message<DecryptRequest>) -> Result<Answer<DecryptResponse>, Status> {
        let (metadata, _, message) = message.into_parts();
        let DecryptRequest { ciphertext, uid, key_id, annotations } = message;
        let operation = Operation::Decrypt { ciphertext, key_id, annotations };
        match self.run(operation, &uid, &metadata).await? {
            Response::Decrypt { plaintext } => {
                Ok(Answer::new(DecryptResponse { plaintext: plaintext.expose_secret().to_vec() }))
            }
            Response::Encrypt { .. } => Err(status(&Error::from(Class::Internal))),
        }
    }

    async fn encrypt(&self, message: Message<EncryptRequest>) -> Result<Answer<EncryptResponse>, Status> {
        let (metadata, _, EncryptRequest { plaintext, uid }) = message.into_parts();
        let operation = Operation::Encrypt { plaintext: secret(plaintext) };
        match self.run(operation, &uid, &metadata).await? {
            Response::Encrypt { ciphertext, key_id, annotations } => Ok(Answer::new(EncryptResponse {
                ciphertext,
                key_id: key_id.as_str().to_owned(),
                annotations: (*annotations).clone(),
            })),
            Response::Decrypt { .. } => Err(status(&Error::from(Class::Internal))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_is_read_as_grpc_writes_it() {
        let cases = [
            ("3S", Some(Duration::from_secs(3))),
            ("2999987u", Some(Duration::from_micros(2_999_987))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("1H", Some(Duration::from_secs(3_600))),
            ("", None),
            ("S", None),
            ("3", None),
            ("123456789S", None),
            ("-1S", None),
            ("3µ", None),
        ];
        for (text, expected) in cases {
            assert_eq!(patience(text), expected, "{text}");
        }
    }
}
