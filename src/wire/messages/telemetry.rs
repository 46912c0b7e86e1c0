//! Metrics of clients, sent to the broker. KIP-714.

#[cfg(any(test, feature = "unstable-fuzzing"))]
api! {
    GetTelemetrySubscriptions = 71, speaks 0..=0 of 0..=0, flexible 0;

    request get_telemetry_subscriptions_request::GetTelemetrySubscriptionsRequest {
        client_instance_id: Uuid;
    }

    response get_telemetry_subscriptions_response::GetTelemetrySubscriptionsResponse {
        throttle_time_ms: i32;
        error_code: i16;
        client_instance_id: Uuid;
        subscription_id: i32;
        accepted_compression_types: Vec<i8>;
        push_interval_ms: i32;
        telemetry_max_bytes: i32;
        delta_temporality: bool;
        requested_metrics: Vec<Str>;
    }
}

#[cfg(any(test, feature = "unstable-fuzzing"))]
api! {
    PushTelemetry = 72, speaks 0..=0 of 0..=0, flexible 0;

    request push_telemetry_request::PushTelemetryRequest {
        client_instance_id: Uuid;
        subscription_id: i32;
        terminating: bool;
        compression_type: i8;
        metrics: Bytes;
    }

    response push_telemetry_response::PushTelemetryResponse {
        throttle_time_ms: i32;
        error_code: i16;
    }
}
