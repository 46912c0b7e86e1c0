//! A consumer whose numbers Prometheus can read, served by a few lines of HTTP.
//!
//! `cargo run --example metrics_endpoint` asks its own endpoint once and ends; a service would go on.

mod support;

use std::time::Duration;

use dtkafka::{Consumer, ConsumerHandle, ErrorPolicy, Message};
use support::{Cluster, Outcome};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// Answers every request with the numbers of now.
async fn serve(listener: TcpListener, consumer: ConsumerHandle) -> Outcome {
    loop {
        let (mut stream, _) = listener.accept().await?;
        let mut request = [0; 1024];
        let _read = stream.read(&mut request).await?;
        let body = consumer.metrics().to_prometheus(&[("service", "orders")]);
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nConnection: close\r\n";
        let answer = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).await?;
    }
}

#[tokio::main]
async fn main() -> Outcome {
    let cluster = Cluster::start().await?;
    let kafka = cluster.with_topics(&[("orders", 2)]).await?;
    kafka
        .producer_context(async |producer| {
            for id in 0..100_u32 {
                let _flushed = producer.send("orders", &id).key(id).await?;
            }
            Ok(())
        })
        .await?;
    let mut consumer = Consumer::new(&kafka, ["orders"])?
        .register_handler("orders", async |order: Message<u32>| {
            tokio::time::sleep(Duration::from_millis(1)).await;
            if order.value % 10 == 3 && order.attempt == 1 {
                Err("not yet")?
            }
            Ok(())
        })?
        .error_policy(ErrorPolicy::retry(2, Duration::ZERO))?;

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let handle = consumer.handle();
    let asked = async {
        while handle.metrics().handled < 100 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        println!("GET http://{address}/metrics");
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Outcome::Ok(answer)
    };
    let answer = tokio::select! {
        answer = asked => answer?,
        served = serve(listener, consumer.handle()) => return served,
        ran = consumer.run(std::future::pending::<()>()) => return Ok(ran?),
    };
    let lines = answer.lines().filter(|line| !line.starts_with('#') && line.contains("service"));
    for line in lines.filter(|line| !line.contains("_bucket")) {
        println!("  {line}");
    }
    consumer.close().await?;
    Ok(())
}
