//! Reading a reply: the few headers that matter and a body that is bounded while it streams, so that no answer, however
//! long, costs more memory than the largest that OpenBao gives.

use std::time::{Duration, SystemTime};

use ::http::header::{DATE, HeaderName, LOCATION, RETRY_AFTER};
use bytes::{Bytes, BytesMut};

use super::failure;
use crate::error::{Class, Error};
use crate::request::BaoReply;

/// Larger replies are not OpenBao's: a batch of 128 answers is below 64 KiB.
const MAX_REPLY: usize = 1 << 20;
/// Nobody is asked to wait longer; it keeps a nonsensical header from overflowing a clock.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3_600);

/// The reply with its whole body.
///
/// # Errors
/// `bad_reply` above [`MAX_REPLY`]; the classes of a broken connection.
pub(super) async fn read(response: reqwest::Response, endpoint: Option<usize>) -> Result<BaoReply, Error> {
    let text = |name: HeaderName| response.headers().get(name).and_then(|value| value.to_str().ok());
    let date: Option<SystemTime> = text(DATE).and_then(|text| httpdate::parse_http_date(text).ok());
    let retry_after = text(RETRY_AFTER).and_then(|text| text.parse().ok()).map(Duration::from_secs);
    let retry_after = retry_after.map(|after| after.min(MAX_RETRY_AFTER));
    let location = text(LOCATION).map(str::to_owned);
    let status = response.status().as_u16();
    let body = body(response).await?;
    Ok(BaoReply { status, body, date, retry_after, location, endpoint })
}

async fn body(mut response: reqwest::Response) -> Result<Bytes, Error> {
    let too_large = || Error::new(Class::BadReply, "the answer is larger than any of OpenBao's");
    let announced = response.content_length();
    if announced.is_some_and(|length| length > MAX_REPLY as u64) {
        return Err(too_large());
    }
    let mut whole = BytesMut::new();
    while let Some(part) = response.chunk().await.map_err(|error| failure::classify(&error))? {
        // Nearly every answer is one part: handed on as it came.
        if whole.is_empty() && announced == Some(part.len() as u64) {
            return Ok(part);
        }
        if whole.len() + part.len() > MAX_REPLY {
            return Err(too_large());
        }
        whole.extend_from_slice(&part);
    }
    Ok(whole.freeze())
}
