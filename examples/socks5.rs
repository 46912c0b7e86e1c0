//! Brokers behind a SOCKS5 proxy (RFC 1928, without authentication), such as `ssh -D 1080 jumphost`:
//! `cargo run --example socks5 PROXY_HOST:PORT BROKERS`. Without arguments, a broker and a proxy inside this process.
//!
//! The proxy resolves the names, also those under which the brokers advertise themselves. TLS and SASL would run on top
//! of it as on any other stream: set them as usual.

#![allow(clippy::disallowed_methods, reason = "the proxy is the example's own")]

use std::{error::Error, io};

use dtkafka::{KafkaConfig, KafkaInstance};
use dtkafka_testcontainers::EmbeddedBroker;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (proxy, brokers, _broker) = match (arguments.next(), arguments.next()) {
        (Some(proxy), Some(brokers)) => (proxy, brokers, None),
        _ => {
            let broker = EmbeddedBroker::builder().start().await?;
            broker.create_topic("behind-the-proxy", 1)?;
            (start_proxy().await?, broker.bootstrap_servers(), Some(broker))
        }
    };
    let config = KafkaConfig::new()
        .set_bootstrap_servers(brokers.as_str())
        .set_transport(move |host, port| connect(proxy.clone(), host, port));
    let admin = KafkaInstance::new(config)?.admin().await?;
    for topic in admin.list_topics().await? {
        println!("{topic:?}");
    }
    Ok(())
}

/// A stream to `host:port` through the proxy.
async fn connect(proxy: String, host: String, port: u16) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(proxy).await?;
    stream.set_nodelay(true)?;
    // Version 5, one method: no authentication.
    stream.write_all(&[5, 1, 0]).await?;
    let mut method = [0; 2];
    stream.read_exact(&mut method).await?;
    if method != [5, 0] {
        return Err(io::Error::other(format!("the proxy wants another method: {method:?}")));
    }
    let length = u8::try_from(host.len()).map_err(|_| io::Error::other("the host name is too long"))?;
    // Connect (1) to a name (3).
    let mut request = vec![5, 1, 0, 3, length];
    request.extend(host.as_bytes());
    request.extend(port.to_be_bytes());
    stream.write_all(&request).await?;
    let mut head = [0; 4];
    stream.read_exact(&mut head).await?;
    if head[1] != 0 {
        return Err(io::Error::other(format!("the proxy cannot reach {host}:{port}: code {}", head[1])));
    }
    let bound = match head[3] {
        1 => 4,
        3 => usize::from(stream.read_u8().await?),
        4 => 16,
        other => return Err(io::Error::other(format!("an address of the unknown type {other}"))),
    };
    let mut rest = vec![0; bound + 2];
    stream.read_exact(&mut rest).await?;
    Ok(stream)
}

/// A small proxy of the same kind: what a jump host offers.
async fn start_proxy() -> io::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            tokio::spawn(async move {
                if let Err(error) = forward(near).await {
                    eprintln!("the proxy: {error}");
                }
            });
        }
    });
    Ok(address)
}

/// Takes one client to where it wants to go.
async fn forward(mut near: TcpStream) -> io::Result<()> {
    let mut greeting = [0; 3];
    near.read_exact(&mut greeting).await?;
    near.write_all(&[5, 0]).await?;
    let mut head = [0; 5];
    near.read_exact(&mut head).await?;
    if (head[1], head[3]) != (1, 3) {
        return Err(io::Error::other("only connections to names are made here"));
    }
    let mut name = vec![0; usize::from(head[4])];
    near.read_exact(&mut name).await?;
    let port = near.read_u16().await?;
    println!("the proxy leads to {}:{port}", String::from_utf8_lossy(&name));
    let mut far = TcpStream::connect((String::from_utf8_lossy(&name).as_ref(), port)).await?;
    near.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await?;
    tokio::io::copy_bidirectional(&mut near, &mut far).await?;
    Ok(())
}
