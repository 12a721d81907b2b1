//! What a request's URL says, or an error in our own words.

use super::error::ApiError;
use axum::extract::{FromRequestParts, Path, Query};
use axum::http::request::Parts;
use percent_encoding::percent_decode_str;
use serde::de::DeserializeOwned;

/// The name in the path, decoded.
pub(super) struct NameInPath(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for NameInPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<NameInPath, ApiError> {
        let Path(name) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|_| ApiError::bad_request("the path is not UTF-8"))?;
        Ok(NameInPath(name))
    }
}

/// The query. Bytes that are not UTF-8 are refused: with replacement characters in it a name would be
/// another name.
pub(super) struct QueryOf<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for QueryOf<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<QueryOf<T>, ApiError> {
        let text = parts.uri.query().unwrap_or("");
        if percent_decode_str(text).decode_utf8().is_err() {
            return Err(ApiError::bad_request("the query is not UTF-8"));
        }
        let Query(query) = Query::from_request_parts(parts, state).await.map_err(|rejection| {
            let text = rejection.body_text();
            let reason = text.rsplit_once("query string: ").map_or(&text[..], |(_, reason)| reason);
            ApiError::bad_request(format!("the query: {reason}"))
        })?;
        Ok(QueryOf(query))
    }
}
