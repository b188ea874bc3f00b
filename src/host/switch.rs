//! The service behind a socket that stays while what it leads to is replaced: a reload swaps the stack without closing
//! the door. A call in flight ends in the stack that it entered.

use std::sync::Arc;
use std::task::{Context, Poll};

use arc_swap::ArcSwap;
use tower::Service;

use crate::error::{Class, Error};
use crate::request::{KmsService, Request, Response};

/// A [`KmsService`] that can be replaced.
#[derive(Clone)]
pub struct Switch(Arc<ArcSwap<KmsService>>);

// === impl Switch ===

impl Switch {
    /// Leads to nothing yet: every call is answered with this class.
    pub fn closed(class: Class) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(refusing(class))))
    }

    /// Leads to another stack from the next call on.
    pub fn lead_to(&self, service: KmsService) {
        self.0.store(Arc::new(service));
    }

    /// Leads to nothing: every call is answered with this class.
    pub fn close(&self, class: Class) {
        self.lead_to(refusing(class));
    }
}

fn refusing(class: Class) -> KmsService {
    KmsService::new(tower::service_fn(move |_: Request| std::future::ready(Err(Error::from(class)))))
}

impl Service<Request> for Switch {
    type Response = Response;
    type Error = Error;
    type Future = <KmsService as Service<Request>>::Future;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        // Our layers are always ready and wait inside the call, so that the clone needs no readiness of its own.
        KmsService::clone(&self.0.load()).call(request)
    }
}
