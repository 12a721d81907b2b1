//! The API without its sockets, for `tests/fuzz`: requests in, responses out.

use super::calls::FromPublicPort;
use super::guard::AT_A_TIME_MAX;
use super::listener::Peer;
use super::{Ops, router};
use crate::link::channel::OpsEnd;
use crate::link::exchange::Exchange;
use crate::plan::Plan;
use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::ConnectInfo;
use axum::http::{Request, Response};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::Semaphore;

/// Every path of the operators' port.
pub struct SocketlessApi {
    router: Router,
}

impl SocketlessApi {
    /// Of a node with this plan, whose shards and backplane are at the other ends of `end`.
    pub fn new(plan: Arc<Plan>, end: OpsEnd) -> SocketlessApi {
        let ops = Ops {
            shards: (0..end.shards()).map(|_| Arc::default()).collect(),
            plan: Arc::new(Exchange::new(plan)),
            reloads: Arc::default(),
            scheduled: Arc::default(),
            ledger: Arc::new(crate::link::ledger::Ledger::new(u64::MAX, 0)),
            end,
            backplane: Arc::default(),
            hooks: Arc::default(),
            health: Arc::default(),
            own: Arc::default(),
            access: Default::default(),
            jwks: Default::default(),
            started: Instant::now(),
            turns: Semaphore::new(AT_A_TIME_MAX),
        };
        SocketlessApi { router: router::router(Arc::new(ops)) }
    }

    /// Answers a request of `peer`, which came by the public port or by the operators' own.
    pub fn call(
        &self,
        request: Request<Bytes>,
        peer: SocketAddr,
        is_public: bool,
    ) -> impl Future<Output = Response<Bytes>> + use<> {
        let mut request = request.map(Body::from);
        request.extensions_mut().insert(ConnectInfo(Peer(peer)));
        if is_public {
            request.extensions_mut().insert(FromPublicPort);
        }
        let answer = TowerToHyperService::new(self.router.clone()).call(request);
        async move {
            let Ok(response) = answer.await;
            let (head, body) = response.into_parts();
            let body = to_bytes(body, usize::MAX).await.expect("the body was made in memory");
            Response::from_parts(head, body)
        }
    }
}
