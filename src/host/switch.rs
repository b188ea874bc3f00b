//! The service behind a socket that stays while what it leads to is replaced: a reload swaps the stack without closing
//! the door. A call in flight ends in the stack that it entered, and whoever replaced that stack learns when the last one has.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use arc_swap::ArcSwap;
use tokio::sync::mpsc;
use tower::Service;

use crate::error::{Class, Error};
use crate::request::{KmsService, Request, Response};

/// A [`KmsService`] that can be replaced.
#[derive(Clone)]
pub struct Switch(Arc<ArcSwap<Led>>);

/// What the switch leads to; held by each call that has gone there.
struct Led {
    kms: KmsService,
    /// Nothing is ever sent: it is gone when the last call is.
    _inside: Option<mpsc::Sender<Infallible>>,
}

/// The calls that have gone one way.
pub struct Calls(mpsc::Receiver<Infallible>);

/// A call on its way.
pub struct Call {
    // First, so that the call has ended when it no longer counts.
    answer: <KmsService as Service<Request>>::Future,
    _led: Arc<Led>,
}

// === impl Switch ===

impl Switch {
    /// Leads to nothing yet: every call is answered with this class.
    pub fn closed(class: Class) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(refusing(class))))
    }

    /// Leads to another stack from the next call on. The answer tells when that stack is no longer needed.
    pub fn lead_to(&self, kms: KmsService) -> Calls {
        let (inside, calls) = mpsc::channel(1);
        self.0.store(Arc::new(Led { kms, _inside: Some(inside) }));
        Calls(calls)
    }

    /// Leads to nothing: every call is answered with this class.
    pub fn close(&self, class: Class) {
        self.0.store(Arc::new(refusing(class)));
    }
}

fn refusing(class: Class) -> Led {
    let kms = KmsService::new(tower::service_fn(move |_: Request| std::future::ready(Err(Error::from(class)))));
    Led { kms, _inside: None }
}

impl Service<Request> for Switch {
    type Response = Response;
    type Error = Error;
    type Future = Call;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Call {
        let led = self.0.load_full();
        // Our layers are always ready and wait inside the call, so that the clone needs no readiness of its own.
        Call { answer: led.kms.clone().call(request), _led: led }
    }
}

// === impl Calls ===

impl Calls {
    /// Resolves when the switch leads elsewhere and the last of them has ended.
    pub async fn gone(&mut self) {
        // Nothing can be sent, so that the only answer is that every sender is gone.
        let _ = self.0.recv().await;
    }
}

impl Future for Call {
    type Output = Result<Response, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.answer.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::request::{Context as CallContext, Operation, secret};

    fn encrypt() -> Request {
        Request { operation: Operation::Encrypt { plaintext: secret(vec![7; 32]) }, context: CallContext::new("u") }
    }

    #[tokio::test(start_paused = true)]
    async fn calls_are_gone_when_the_last_one_of_the_old_stack_is_and_not_before() {
        let mut switch = Switch::closed(Class::Starting);
        let slow = tower::service_fn(|_: Request| async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            Err(Error::from(Class::Sealed))
        });
        let mut calls = switch.lead_to(KmsService::new(slow));
        let within = |seconds| Duration::from_secs(seconds);
        assert!(tokio::time::timeout(within(60), calls.gone()).await.is_err(), "it may be called at any moment");
        let (first, second) = (tokio::spawn(switch.call(encrypt())), switch.call(encrypt()));
        let _next = switch.lead_to(KmsService::new(slow));
        drop(second);
        assert!(tokio::time::timeout(within(4), calls.gone()).await.is_err(), "one is on its way");
        tokio::time::timeout(within(2), calls.gone()).await.expect("it has ended");
        assert_eq!(first.await.expect("answered").expect_err("refused").class(), Class::Sealed);
    }
}
