//! Fault rules: what goes wrong, for which requests, and how often. Pure but for the seed it is handed.
//!
//! A request is shown to the rules once as a whole, and once for each topic it names; the first rule that applies
//! decides, delays and slow answers add to it. Nothing here touches the cluster's data.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::ApiKey;

use super::random::Random;
use super::watch;

/// What happens to a request that a [`Fault`] applies to.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Effect {
    /// Not applied, and answered with this error. Metadata has a place for it with each topic that is asked about by name;
    /// only `RebootstrapRequired` is told of the whole answer, from version 13 on.
    Error(ResponseError),
    /// Applied, and answered with this error all the same (Produce, OffsetCommit and the requests of transactions;
    /// other requests are answered as usual).
    ErrorAfter(ResponseError),
    /// Applied, and answered this much later. What follows on the connection waits behind it, as in Apache Kafka.
    Delay(Duration),
    /// Not applied and never answered: the connection stays open and does nothing more.
    Silence,
    /// Applied and never answered: the connection stays open and does nothing more.
    SilenceAfter,
    /// Not applied: the connection closes.
    DisconnectBefore,
    /// Applied: the connection closes without the answer.
    DisconnectAfter,
    /// Applied, but only the first bytes of the answer's frame are sent before the connection closes.
    Truncate(usize),
    /// Applied, but one bit of the answer's body is wrong; which one, the seed decides.
    Corrupt,
    /// Applied, and the answer comes in pieces of so many bytes with a pause after each.
    Trickle(usize, Duration),
    /// Applied and answered with this `throttle_time_ms`; the broker does not read from the connection for as long
    /// (KIP-219).
    Throttle(Duration),
}

impl Effect {
    /// These add to what another rule decides.
    fn adds(&self) -> bool {
        matches!(self, Self::Delay(_) | Self::Trickle(..) | Self::Throttle(_))
    }
}

/// A rule for [`super::FaultControl::inject`]: the requests it looks at, and what happens to those it applies to.
///
/// ```
/// # use std::time::Duration;
/// # use dtkafka_testcontainers::{Effect, Fault, broker::{ApiKey, ResponseError}};
/// // From the third Produce to topic `orders` on, one in ten is written, and the answer says it was not.
/// let fault = Fault::on(ApiKey::Produce)
///     .topic("orders")
///     .after(2)
///     .probability(0.1)
///     .effect(Effect::ErrorAfter(ResponseError::RequestTimedOut));
/// // Every answer of broker 2 is slow, whatever was asked.
/// let slow = Fault::anywhere().broker(2).effect(Effect::Delay(Duration::from_millis(300)));
/// ```
#[derive(Debug, Clone)]
#[must_use = "a fault does nothing before it is injected"]
pub struct Fault {
    api: Option<i16>,
    broker: Option<i32>,
    topic: Option<String>,
    client: Option<String>,
    after: u64,
    times: Option<u64>,
    probability: f64,
    effect: Effect,
}

impl Fault {
    /// A rule for the requests of one API. Without [`Self::effect`] it closes the connection.
    pub fn on(api: ApiKey) -> Self {
        Self { api: Some(api as i16), ..Self::anywhere() }
    }

    /// A rule for every request.
    pub fn anywhere() -> Self {
        Self {
            api: None,
            broker: None,
            topic: None,
            client: None,
            after: 0,
            times: None,
            probability: 1.0,
            effect: Effect::DisconnectBefore,
        }
    }

    /// Only requests that this broker receives.
    pub fn broker(mut self, broker: i32) -> Self {
        self.broker = Some(broker);
        self
    }

    /// Only requests that name this topic. An error is then told for that topic alone, and the request's other topics
    /// are served; whatever else the effect is, it happens to the whole request.
    pub fn topic(mut self, topic: &str) -> Self {
        self.topic = Some(topic.to_owned());
        self
    }

    /// Only requests with this `client.id`.
    pub fn client(mut self, client: &str) -> Self {
        self.client = Some(client.to_owned());
        self
    }

    /// Lets the first `requests` pass of those that it looks at.
    pub fn after(mut self, requests: u64) -> Self {
        self.after = requests;
        self
    }

    /// Applies so many times, and is then withdrawn. Default: until withdrawn.
    pub fn times(mut self, times: u64) -> Self {
        self.times = Some(times);
        self
    }

    /// Applies with this probability, from 0 to 1, drawn from the broker's seed. Default 1.
    pub fn probability(mut self, probability: f64) -> Self {
        self.probability = probability;
        self
    }

    /// What happens to a request that it applies to.
    pub fn effect(mut self, effect: Effect) -> Self {
        self.effect = effect;
        self
    }
}

/// Names an injected [`Fault`], to withdraw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FaultId(u64);

/// A request as the rules see it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) api: i16,
    pub(super) broker: i32,
    pub(super) client: &'a str,
}

/// The faults that one request meets.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct InjectedFaults {
    pub(super) effect: Option<Effect>,
    /// Errors after the effect, for one topic each.
    pub(super) topics_after: BTreeMap<String, ResponseError>,
    pub(super) delay: Duration,
    pub(super) trickle: Option<(usize, Duration)>,
    pub(super) throttle: Duration,
}

impl InjectedFaults {
    fn add(&mut self, effect: Effect) {
        match effect {
            Effect::Delay(time) => self.delay = self.delay.saturating_add(time),
            Effect::Trickle(bytes, pause) => self.trickle = Some((bytes.max(1), pause)),
            Effect::Throttle(time) => self.throttle = self.throttle.max(time),
            other => self.effect = Some(other),
        }
    }
}

#[derive(Debug)]
struct Rule {
    id: FaultId,
    fault: Fault,
    seen: u64,
}

#[derive(Debug, Default)]
struct Rules {
    rules: Vec<Rule>,
    given: u64,
    requests: BTreeMap<i16, u64>,
}

impl Rules {
    /// The effects of the rules for this request and topic: at most one that decides, and all that add.
    fn apply(&mut self, asked: Asked<'_>, topic: Option<&str>, random: &Random) -> Vec<Effect> {
        let mut effects = Vec::new();
        let mut decided = false;
        for rule in &mut self.rules {
            let fault = &mut rule.fault;
            let fits = fault.topic.as_deref() == topic
                && fault.api.is_none_or(|api| api == asked.api)
                && fault.broker.is_none_or(|broker| broker == asked.broker)
                && fault.client.as_deref().is_none_or(|client| client == asked.client);
            if !fits {
                continue;
            }
            rule.seen += 1;
            let adds = fault.effect.adds();
            if rule.seen <= fault.after || (decided && !adds) || !random.happens(fault.probability) {
                continue;
            }
            decided |= !adds;
            if let Some(times) = &mut fault.times {
                *times -= 1;
            }
            effects.push(fault.effect.clone());
        }
        self.rules.retain(|rule| rule.fault.times != Some(0));
        effects
    }
}

/// The rules that are in force, and the answers that are held.
#[derive(Debug)]
pub(super) struct Faults {
    rules: Mutex<Rules>,
    held: watch::Sender<BTreeSet<i16>>,
}

impl Default for Faults {
    fn default() -> Self {
        Self { rules: Mutex::default(), held: watch::Sender::new(BTreeSet::new()) }
    }
}

impl Faults {
    fn rules(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn inject(&self, fault: Fault) -> FaultId {
        let mut rules = self.rules();
        rules.given += 1;
        let id = FaultId(rules.given);
        if fault.times != Some(0) {
            rules.rules.push(Rule { id, fault, seen: 0 });
        }
        id
    }

    pub(super) fn withdraw(&self, fits: impl Fn(FaultId, &Fault) -> bool) {
        self.rules().rules.retain(|rule| !fits(rule.id, &rule.fault));
    }

    /// Forgets the delay of an API that holds for every broker, topic and client.
    pub(super) fn withdraw_delay(&self, api: ApiKey) {
        self.withdraw(|_, f| {
            f.api == Some(api as i16)
                && f.broker.is_none()
                && f.topic.is_none()
                && f.client.is_none()
                && matches!(f.effect, Effect::Delay(_))
        });
    }

    pub(super) fn requests(&self, api: ApiKey) -> u64 {
        self.rules().requests.get(&(api as i16)).copied().unwrap_or(0)
    }

    /// Of every API.
    pub(super) fn total_requests(&self) -> u64 {
        self.rules().requests.values().sum()
    }

    /// Counts the request and says what becomes of it as a whole.
    pub(super) fn for_request(&self, asked: Asked<'_>, random: &Random) -> InjectedFaults {
        let mut rules = self.rules();
        *rules.requests.entry(asked.api).or_default() += 1;
        let mut injected = InjectedFaults::default();
        rules.apply(asked, None, random).into_iter().for_each(|effect| injected.add(effect));
        injected
    }

    /// What the rules say of one topic of the request: the error that is to be told, if any; the rest goes into `injected`.
    pub(super) fn topic_error(
        &self,
        asked: Asked<'_>,
        topic: &str,
        random: &Random,
        injected: &mut InjectedFaults,
    ) -> Option<ResponseError> {
        let mut error = None;
        for effect in self.rules().apply(asked, Some(topic), random) {
            match effect {
                Effect::Error(told) => error = Some(told),
                Effect::ErrorAfter(told) => {
                    injected.topics_after.insert(topic.to_owned(), told);
                }
                // Not applied to this topic; what the answer says does not matter, as there will be none.
                Effect::DisconnectBefore | Effect::Silence => {
                    error = Some(ResponseError::UnknownServerError);
                    injected.add(effect);
                }
                other => injected.add(other),
            }
        }
        error
    }

    pub(super) fn hold(&self, api: ApiKey) {
        self.held.send_modify(|held| {
            held.insert(api as i16);
        });
    }

    pub(super) fn release(&self, api: ApiKey) {
        self.held.send_modify(|held| {
            held.remove(&(api as i16));
        });
    }

    pub(super) fn clear(&self) {
        self.rules().rules.clear();
        self.held.send_modify(BTreeSet::clear);
    }

    /// Waits while this API's answers are held.
    pub(super) async fn wait_while_held(&self, api: i16) {
        let mut held = self.held.subscribe();
        // The sender lives as long as the faults: this ends only when the API is released.
        held.wait_for(|held| !held.contains(&api)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRODUCE: Asked<'static> = Asked { api: ApiKey::Produce as i16, broker: 1, client: "c" };

    fn struck(faults: &Faults, random: &Random, times: usize) -> Vec<bool> {
        (0..times).map(|_| faults.for_request(PRODUCE, random).effect.is_some()).collect()
    }

    #[test]
    fn a_rule_lets_the_first_pass_and_applies_as_often_as_it_says() {
        let (faults, random) = (Faults::default(), Random::new(1));
        faults.inject(Fault::on(ApiKey::Produce).after(2).times(2).effect(Effect::Silence));
        assert_eq!(struck(&faults, &random, 6), [false, false, true, true, false, false]);
    }

    #[test]
    fn a_rule_for_another_broker_client_or_api_does_not_apply() {
        let (faults, random) = (Faults::default(), Random::new(1));
        faults.inject(Fault::on(ApiKey::Fetch));
        faults.inject(Fault::anywhere().broker(2));
        faults.inject(Fault::anywhere().client("other"));
        faults.inject(Fault::anywhere().topic("t"));
        assert_eq!(struck(&faults, &random, 1), [false]);
        let id = faults.inject(Fault::anywhere().client("c").broker(1));
        assert_eq!(struck(&faults, &random, 1), [true]);
        faults.withdraw(|rule, _| rule == id);
        assert_eq!(struck(&faults, &random, 1), [false]);
    }

    #[test]
    fn the_oldest_rule_decides_and_delays_add_up() {
        let (faults, random) = (Faults::default(), Random::new(1));
        let second = Duration::from_secs(1);
        faults.inject(Fault::anywhere().effect(Effect::Delay(second)));
        faults.inject(Fault::anywhere().times(1).effect(Effect::DisconnectAfter));
        faults.inject(Fault::anywhere().times(1).effect(Effect::Corrupt));
        faults.inject(Fault::on(ApiKey::Produce).effect(Effect::Delay(second)));
        let first = faults.for_request(PRODUCE, &random);
        assert_eq!((first.effect, first.delay), (Some(Effect::DisconnectAfter), second * 2));
        assert_eq!(faults.for_request(PRODUCE, &random).effect, Some(Effect::Corrupt));
    }

    #[test]
    fn chances_repeat_with_the_seed() {
        let draw = |seed| {
            let faults = Faults::default();
            faults.inject(Fault::anywhere().probability(0.3));
            struck(&faults, &Random::new(seed), 200)
        };
        assert_eq!(draw(5), draw(5));
        let hits = draw(5).into_iter().filter(|hit| *hit).count();
        assert!((30..90).contains(&hits), "{hits}");
    }

    #[test]
    fn an_error_for_a_topic_is_told_for_it_alone() {
        let (faults, random) = (Faults::default(), Random::new(1));
        let timed_out = ResponseError::RequestTimedOut;
        faults.inject(Fault::on(ApiKey::Produce).topic("t").effect(Effect::ErrorAfter(timed_out)));
        let mut injected = faults.for_request(PRODUCE, &random);
        assert_eq!(faults.topic_error(PRODUCE, "u", &random, &mut injected), None);
        assert_eq!(faults.topic_error(PRODUCE, "t", &random, &mut injected), None);
        assert_eq!(injected.topics_after.get("t"), Some(&timed_out));
        assert_eq!(injected.effect, None);
    }
}
