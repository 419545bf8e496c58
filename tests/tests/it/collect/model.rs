//! A model of the protocol of garbage collection, and an exhaustive search of its states: two pushers and two collectors
//! that may stop anywhere, on a chain and on a diamond of references. The protocol as built keeps the cache closed in all
//! states; without any one of its rules there is a state in which it is open, so each rule is needed and each check here
//! can fail.
//!
//! Time appears as three assumptions. A collector waits longer than any push goes on without reading `gc/` again. The
//! flag of a collector is taken over only after a time in which a deletion that it had begun ends. The pause after which
//! a collector reads its flag back is longer than the request of another one that saw no flag, and, where it took the
//! flag over, longer than a deletion.

use std::collections::HashSet;

/// A set of paths: bit `i` is path `i`. A path references only paths of greater number.
type Paths = u8;

/// What is taken away from the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    ReferencesFirst,
    DoomedIsMissing,
    FlagIsSet,
    FlagIsSeenAbsent,
    HeadAfterFlag,
    FlagBeforeHead,
    ReadsRecordAgain,
    ListsAfterFlag,
    KeepsWhatIsYoung,
    DeletesReferrersFirst,
    ChecksItsFlag,
    ChecksRecords,
    RemovesOnlyItsFlag,
    PausesBeforeReadBack,
    ReadsBack,
}

/// One protocol, service and graph.
#[derive(Debug, Clone, Copy)]
struct Model {
    references: &'static [Paths],
    without: Option<Rule>,
    has_conditional_writes: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum PushStep {
    NotStarted,
    Look,
    Put,
    CheckFlag,
    Head,
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Pusher {
    step: PushStep,
    /// The doomed paths that it knows.
    doomed: Paths,
    /// What it must still publish.
    todo: Paths,
    /// What it has published.
    published: Paths,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum CollectStep {
    NotStarted,
    Wait,
    LookForFlag,
    PutFlag,
    ReadBack,
    List,
    CheckFlag,
    Delete,
    RemoveRecords,
    RemoveFlag,
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Collector {
    step: CollectStep,
    /// What it doomed.
    doomed: Paths,
    /// What it must still delete.
    dead: Paths,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct State {
    present: Paths,
    /// The paths that were written lately.
    young: Paths,
    /// The owner of the flag.
    flag: Option<usize>,
    /// What the record of each collector dooms.
    records: [Paths; 2],
    pushers: [Pusher; 2],
    collectors: [Collector; 2],
}

fn bit(path: usize) -> Paths {
    1 << path
}

fn first(paths: Paths) -> Option<usize> {
    (paths != 0).then(|| paths.trailing_zeros() as usize)
}

fn last(paths: Paths) -> Option<usize> {
    (paths != 0).then(|| 7 - paths.leading_zeros() as usize)
}

impl State {
    /// What the records in `gc/` doom.
    fn recorded(&self) -> Paths {
        self.records[0] | self.records[1]
    }
}

impl Model {
    fn lacks(self, rule: Rule) -> bool {
        self.without == Some(rule)
    }

    fn closure(self, roots: Paths) -> Paths {
        (0..self.references.len()).fold(
            roots,
            |all, path| {
                if all & bit(path) == 0 { all } else { all | self.references[path] }
            },
        )
    }

    /// Every path but the first is there, old, and unneeded.
    fn start(self) -> State {
        let pusher = Pusher { step: PushStep::NotStarted, doomed: 0, todo: 0, published: 0 };
        let collector = Collector { step: CollectStep::NotStarted, doomed: 0, dead: 0 };
        State {
            present: (bit(self.references.len()) - 1) & !1,
            young: 0,
            flag: None,
            records: [0; 2],
            pushers: [pusher; 2],
            collectors: [collector; 2],
        }
    }

    fn is_closed(self, state: &State) -> bool {
        (0..self.references.len())
            .all(|path| state.present & bit(path) == 0 || self.references[path] & !state.present == 0)
    }

    fn dead(self, state: &State) -> Paths {
        state.present & !self.closure(state.present & state.young)
    }

    /// The states that may follow, with what happened.
    fn next(self, state: &State) -> Vec<(String, State)> {
        let mut next = Vec::new();
        for number in 0..2 {
            self.push(state, number, &mut next);
            self.collect(state, number, &mut next);
        }
        next
    }

    /// The steps of a pusher. The first one publishes path 0, the second path 1.
    fn push(self, state: &State, number: usize, next: &mut Vec<(String, State)>) {
        let Pusher { step, doomed, todo, published } = state.pushers[number];
        let needed = self.closure(bit(number));
        let mut add = |what: &str, present: Paths, pusher: Pusher| {
            let mut state = State { present, young: state.young | (present & !state.present), ..*state };
            state.pushers[number] = pusher;
            next.push((format!("pusher {number}: {what}"), state));
        };
        let at = |step| Pusher { step, doomed, todo, published };
        if step != PushStep::Ended && step != PushStep::NotStarted {
            add("stops", state.present, at(PushStep::Ended));
        }
        match step {
            PushStep::NotStarted => {
                add("reads gc/", state.present, Pusher { doomed: state.recorded(), ..at(PushStep::Look) });
            }
            PushStep::Look => {
                let lost = if self.lacks(Rule::DoomedIsMissing) { 0 } else { doomed };
                let todo = needed & (!state.present | lost) & !published;
                add("looks", state.present, Pusher { todo, ..at(PushStep::Put) });
            }
            PushStep::Put => {
                let path = if self.lacks(Rule::ReferencesFirst) { first(todo) } else { last(todo) };
                let Some(path) = path else { return add("ends", state.present, at(PushStep::Ended)) };
                if state.recorded() & !doomed != 0 {
                    let doomed = doomed | state.recorded();
                    add("reads gc/ again", state.present, Pusher { doomed, ..at(PushStep::Look) });
                }
                let confirms = doomed & bit(path) != 0 && !self.lacks(Rule::FlagIsSeenAbsent);
                let after = match confirms {
                    true if self.lacks(Rule::FlagBeforeHead) => at(PushStep::Head),
                    true => at(PushStep::CheckFlag),
                    false => Pusher { todo: todo & !bit(path), published: published | bit(path), ..at(PushStep::Put) },
                };
                let mut put = *state;
                put.present |= bit(path);
                put.young |= bit(path);
                put.pushers[number] = after;
                next.push((format!("pusher {number}: puts {path}"), put));
            }
            PushStep::CheckFlag | PushStep::Head => {
                let Some(path) = last(todo) else { return };
                let confirmed =
                    Pusher { todo: todo & !bit(path), published: published | bit(path), ..at(PushStep::Put) };
                let is_last = (step == PushStep::Head) != self.lacks(Rule::FlagBeforeHead);
                match step {
                    PushStep::CheckFlag if state.flag.is_some() => {}
                    PushStep::CheckFlag if is_last || self.lacks(Rule::HeadAfterFlag) => {
                        add("sees no flag", state.present, confirmed);
                    }
                    PushStep::CheckFlag => add("sees no flag", state.present, at(PushStep::Head)),
                    _ if state.present & bit(path) == 0 => add("misses it", state.present, at(PushStep::Put)),
                    _ if is_last => add("sees it", state.present, confirmed),
                    _ => add("sees it", state.present, at(PushStep::CheckFlag)),
                }
            }
            PushStep::Ended => {}
        }
    }

    /// Whether the owner of the flag has been silent for so long that the flag may be taken over.
    fn is_stale(state: &State, owner: usize) -> bool {
        !matches!(state.collectors[owner].step, CollectStep::Delete | CollectStep::RemoveRecords)
    }

    /// The steps of a collector.
    fn collect(self, state: &State, number: usize, next: &mut Vec<(String, State)>) {
        use CollectStep as Step;
        let Collector { step, doomed, dead } = state.collectors[number];
        let mut add = |what: &str, changed: State, collector: Collector| {
            let mut changed = changed;
            changed.collectors[number] = collector;
            next.push((format!("collector {number}: {what}"), changed));
        };
        let at = |step| Collector { step, doomed, dead };
        let with_own_flag = State { flag: Some(number), ..*state };
        if step != Step::Ended && step != Step::NotStarted {
            add("stops", *state, at(Step::Ended));
        }
        match step {
            Step::NotStarted => {
                let doomed = self.dead(state);
                let mut dooming = *state;
                dooming.records[number] = doomed;
                add("dooms", dooming, Collector { doomed, ..at(Step::Wait) });
            }
            Step::Wait => {
                let knows = |pusher: &Pusher| {
                    matches!(pusher.step, PushStep::NotStarted | PushStep::Ended) || doomed & !pusher.doomed == 0
                };
                if self.lacks(Rule::ReadsRecordAgain) || state.pushers.iter().all(knows) {
                    let first = if self.lacks(Rule::ListsAfterFlag) { Step::List } else { Step::LookForFlag };
                    add("has waited", *state, at(first));
                }
            }
            Step::LookForFlag => match state.flag {
                _ if self.lacks(Rule::FlagIsSet) => add("sets no flag", *state, at(Step::List)),
                Some(owner) if owner == number || !Self::is_stale(state, owner) => {}
                _ if self.has_conditional_writes => {
                    add("sets the flag", with_own_flag, self.after_flag(at(Step::List)));
                }
                _ => add("sees no flag", *state, at(Step::PutFlag)),
            },
            Step::PutFlag => add("puts the flag", with_own_flag, at(Step::ReadBack)),
            Step::ReadBack => {
                let other_acts =
                    matches!(state.collectors[1 - number].step, Step::PutFlag | Step::Delete | Step::RemoveRecords);
                let has_paused = !other_acts || self.lacks(Rule::PausesBeforeReadBack);
                if self.lacks(Rule::ReadsBack) || (state.flag == Some(number) && has_paused) {
                    add("reads its flag back", *state, self.after_flag(at(Step::List)));
                } else if state.flag != Some(number) {
                    add("reads another flag", *state, at(Step::LookForFlag));
                }
            }
            Step::List if doomed & !state.records[number] != 0 && !self.lacks(Rule::ChecksRecords) => {
                add("misses its record", *state, at(Step::RemoveFlag));
            }
            Step::List => {
                let young = if self.lacks(Rule::KeepsWhatIsYoung) { 0 } else { state.young };
                let kept = self.closure(state.present & young);
                let collector = Collector { dead: state.present & doomed & !kept, ..at(Step::CheckFlag) };
                let listed_early = self.lacks(Rule::ListsAfterFlag);
                add(
                    "lists",
                    *state,
                    if listed_early { Collector { step: Step::LookForFlag, ..collector } } else { collector },
                );
            }
            Step::CheckFlag => {
                let is_own = state.flag == Some(number) || self.lacks(Rule::FlagIsSet);
                if is_own || self.lacks(Rule::ChecksItsFlag) {
                    // Its roots may be others than those of the other collector.
                    add("keeps the rest", *state, Collector { dead: 0, ..at(Step::RemoveRecords) });
                    if dead != 0 {
                        add("sees its flag", *state, at(Step::Delete));
                    }
                } else {
                    add("has lost its flag", *state, at(Step::Ended));
                }
            }
            Step::Delete => {
                let path = if self.lacks(Rule::DeletesReferrersFirst) { last(dead) } else { first(dead) };
                let Some(path) = path else { return };
                let deleted = State { present: state.present & !bit(path), ..*state };
                add(&format!("deletes {path}"), deleted, Collector { dead: dead & !bit(path), ..at(Step::CheckFlag) });
                // The answer was lost, and the request is repeated.
                add(&format!("deletes {path}, without an answer"), deleted, at(Step::Delete));
            }
            Step::RemoveRecords => {
                let mut removed = *state;
                removed.records[number] = 0;
                add("removes its record", removed, at(Step::RemoveFlag));
                // It may be as old, unless its time has not passed yet.
                if state.collectors[1 - number].step != Step::Wait {
                    add("removes both records", State { records: [0; 2], ..*state }, at(Step::RemoveFlag));
                }
                add("removes no record", *state, at(Step::RemoveFlag));
            }
            Step::RemoveFlag => {
                let removes = state.flag == Some(number) || self.lacks(Rule::RemovesOnlyItsFlag);
                let flag = if removes { None } else { state.flag };
                add("removes its flag", State { flag, ..*state }, at(Step::Ended));
            }
            Step::Ended => {}
        }
    }

    fn after_flag(self, collector: Collector) -> Collector {
        let step = if self.lacks(Rule::ListsAfterFlag) { CollectStep::CheckFlag } else { CollectStep::List };
        Collector { step, ..collector }
    }

    /// Visits all states. Returns how many there are, and the steps that lead to an open one.
    fn search(self) -> (usize, Option<Vec<String>>) {
        let start = self.start();
        let mut states: Vec<(State, usize)> = vec![(start, 0)];
        let mut seen = HashSet::from([start]);
        let mut index = 0;
        while index < states.len() {
            let state = states[index].0;
            if !self.is_closed(&state) {
                return (states.len(), Some(self.trace(&states, index)));
            }
            for (_, following) in self.next(&state) {
                if seen.insert(following) {
                    states.push((following, index));
                }
            }
            index += 1;
        }
        (states.len(), None)
    }

    /// Returns what happened until the state with that index.
    fn trace(self, states: &[(State, usize)], mut index: usize) -> Vec<String> {
        let mut steps = Vec::new();
        while index > 0 {
            let (state, previous) = states[index];
            let step = self.next(&states[previous].0).into_iter().find(|(_, following)| *following == state);
            steps.extend(step.map(|(what, _)| what));
            index = previous;
        }
        steps.reverse();
        steps
    }
}

/// `0 -> 1 -> 2`.
const CHAIN: &[Paths] = &[0b010, 0b100, 0];
/// `0 -> {1, 2} -> 3`.
const DIAMOND: &[Paths] = &[0b0110, 0b1000, 0b1000, 0];

fn models(without: Option<Rule>, services: &[bool]) -> Vec<Model> {
    let model = |references, has_conditional_writes| Model { references, without, has_conditional_writes };
    services.iter().flat_map(|&service| [model(CHAIN, service), model(DIAMOND, service)]).collect()
}

#[test]
fn the_protocol_keeps_the_cache_closed_in_all_states() {
    for model in models(None, &[true, false]) {
        let (states, open) = model.search();
        println!("{model:?}: {states} states");
        assert_eq!(open, None, "{model:?}");
        assert!(states > 10_000, "the search ended early: {states} states");
    }
}

/// Rules that only a service without conditional writes needs are taken away there.
#[test]
fn without_any_one_of_its_rules_the_protocol_leaves_the_cache_open() {
    let rules = [
        (Rule::ReferencesFirst, true),
        (Rule::DoomedIsMissing, true),
        (Rule::FlagIsSet, true),
        (Rule::FlagIsSeenAbsent, true),
        (Rule::HeadAfterFlag, true),
        (Rule::FlagBeforeHead, true),
        (Rule::ReadsRecordAgain, true),
        (Rule::ListsAfterFlag, true),
        (Rule::KeepsWhatIsYoung, true),
        (Rule::DeletesReferrersFirst, true),
        (Rule::ChecksItsFlag, true),
        (Rule::ChecksRecords, true),
        (Rule::RemovesOnlyItsFlag, true),
        (Rule::PausesBeforeReadBack, false),
        (Rule::ReadsBack, false),
    ];
    for (rule, has_conditional_writes) in rules {
        let model = Model { references: CHAIN, without: Some(rule), has_conditional_writes };
        let (states, open) = model.search();
        println!(
            "without {rule:?}: {states} states, {}",
            open.as_ref().map_or("closed".to_owned(), |steps| steps.join(" | "))
        );
        assert!(open.is_some(), "the protocol is closed without {rule:?}");
    }
}
