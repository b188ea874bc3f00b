//! The one place where an [`Error`] becomes a gRPC status. kube-apiserver reads the code for metrics and logs only; it
//! repeats nothing because of it.

use tonic::{Code, Status};

use crate::error::{Class, Error};

/// The code of a class.
pub fn code(class: Class) -> Code {
    match class {
        Class::InvalidRequest | Class::TooLarge | Class::KeyIdMalformed | Class::AnnotationsInvalid => {
            Code::InvalidArgument
        }
        Class::CiphertextInvalid => Code::InvalidArgument,
        Class::KeyIdUnknown => Code::NotFound,
        Class::VersionTooOld
        | Class::KeySoftDeleted
        | Class::KeyUnusable
        | Class::KeyRolledBack
        | Class::KeyMissing
        | Class::MountMissing
        | Class::NamespaceMissing
        | Class::FingerprintMismatch
        | Class::CredentialUnavailable
        | Class::TrustUnavailable => Code::FailedPrecondition,
        Class::TokenRejected | Class::LoginRefused => Code::PermissionDenied,
        Class::Overloaded | Class::RateLimited => Code::ResourceExhausted,
        Class::DeadlineExceeded => Code::DeadlineExceeded,
        Class::Cancelled => Code::Cancelled,
        Class::Internal | Class::WrongVersion => Code::Internal,
        Class::Starting
        | Class::Unreachable
        | Class::NameResolution
        | Class::Tls
        | Class::ConnectionLost
        | Class::Timeout
        | Class::Sealed
        | Class::NoLeader
        | Class::ServerError
        | Class::BadReply
        | Class::StaleNode
        | Class::RedirectRefused => Code::Unavailable,
    }
}

/// The status that leaves the socket.
pub(super) fn status(error: &Error) -> Status {
    Status::new(code(error.class()), error.public())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Fault;

    #[test]
    fn codes_agree_with_where_the_fault_lies() {
        for &class in Class::ALL {
            let code = code(class);
            assert_ne!(code, Code::Unknown, "{class}");
            if code == Code::InvalidArgument {
                assert_eq!(class.fault(), Fault::Caller, "{class}");
            }
            if code == Code::Unavailable {
                assert_ne!(class.fault(), Fault::Caller, "{class}");
            }
        }
    }
}
