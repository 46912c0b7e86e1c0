//! One suite, every backend: what users do with `dtkafka`, on the embedded broker and on real Apache Kafka.

#![allow(missing_docs, reason = "tests")]

mod admin;
mod backend;
mod facade;
mod seeds;
