"""The grammar of the built-in tasks: for each, a function that draws an example of a given label.

Every label follows from what a sentence means, never from which words it contains: who did what
to whom, what a negation covers, which clause of a "but" counts, which noun a verb agrees with.
The meaning is built first (an `Event`, a relation, …), the label is computed from it, and the
sentence is one of several ways to say it. There is no label noise.
"""

from __future__ import annotations

from random import Random

from mini.english import (
    ACTIONS,
    ASPECTS,
    BAD,
    COMPARE,
    GOOD,
    HYPERNYM,
    KINDS,
    LOOKS,
    NAMES,
    PEOPLE,
    PLACES,
    TIMES,
    VERBS,
    Event,
    clause,
    draw_event,
    nouns,
    past,
    present,
    say,
    sentence,
)

# -------------------------------------------------------------------------------------- CoLA


def cola(rng: Random, good: bool) -> tuple[str]:
    """A grammatical sentence, or one with a single fault that only its structure shows."""
    plural = rng.random() < 0.5
    noun, other, third = rng.sample(PEOPLE, 3)
    subject = f"the {noun}{'s' if plural else ''}"
    near = rng.choice(["near", "behind", "beside", "with"])
    verb = VERBS[rng.randrange(len(VERBS))][rng.randrange(2)]
    attractor_plural = plural == (rng.random() < 0.3)
    attractor = f"the {other}{'s' if attractor_plural else ''}"
    link = f"that {attractor} {past(verb)}" if rng.random() < 0.4 else f"{near} {attractor}"
    number = plural if good else not plural  # the number that the verb shows
    place = rng.choice(PLACES)
    kind = rng.randrange(8)
    if kind < 2:
        shown = verb if number else present(verb)
        told = f"{subject} {link} {shown} the {third}"
    elif kind == 2:
        told = f"{subject} {link} {'are' if number else 'is'} {rng.choice(LOOKS)}"
    elif kind == 3:
        told = f"{subject} {link} {'have' if number else 'has'} {past(verb)} the {third}"
    elif kind == 4:
        told = f"{subject} {link} {past(verb)} {'themselves' if number else 'himself'}"
    elif kind == 5:  # the verb form after an auxiliary
        helper, form = rng.choice([("did not", verb), ("had", past(verb)), ("will", verb)])
        wrong = {verb: past(verb), past(verb): verb}[form]
        told = f"{subject} {link} {helper} {form if good else wrong} the {third}"
    elif kind == 6:  # a question has a gap, and only one
        asked = rng.choice([f"which {noun} did", "whom did"])
        told = f"{asked} {attractor} {verb} {'' if good else f'the {third} '}{place}"
        if rng.random() < 0.5:
            gap = "" if not good else f"the {third} "
            told = f"when did {attractor} {verb} {gap}{place}"
        return (sentence(told, "?"),)
    else:  # two neighbouring words change places
        words = f"{subject} {past(verb)} the {third} {place}".split()
        if not good:
            at = rng.choice([0, 1, 2, 3, 5])
            words[at], words[at + 1] = words[at + 1], words[at]
        told = " ".join(words)
    return (sentence(told),)


# ------------------------------------------------------------------------------------- SST-2


def opinion(rng: Random, aspect: str, positive: bool) -> str:
    """A clause about one aspect; negations turn the word, so the word alone says little."""
    keeps = [
        "{a} is {w}",
        "{a} is very {w}",
        "{a} is nothing but {w}",
        "I found {a} {w}",
        "nobody can deny that {a} is {w}",
        "{a} is never less than {w}",
    ]
    turns = [
        "{a} is not {w}",
        "{a} is hardly {w}",
        "{a} is far from {w}",
        "{a} is never {w}",
        "{a} is anything but {w}",
        "I did not find {a} {w}",
        "nobody can say that {a} is {w}",
    ]
    turn = rng.random() < 0.5
    word = rng.choice(GOOD if positive != turn else BAD)
    return rng.choice(turns if turn else keeps).format(a=f"the {aspect}", w=word)


def sst2(rng: Random, positive: bool) -> tuple[str]:
    """A review whose main clause decides; what is conceded ("although", "but") does not."""
    one, two = rng.sample(ASPECTS, 2)
    main, same = opinion(rng, one, positive), opinion(rng, two, positive)
    conceded, word = opinion(rng, two, not positive), rng.choice(BAD if positive else GOOD)
    told = rng.choice(
        [
            main,
            f"{conceded}, but {main}",
            f"although {conceded}, {main}",
            f"{main}, although {conceded}",
            f"{same}, and {main}",
            f"despite the {word} {two}, {main}",
            f"{main} despite the {word} {two}",
            f"I expected the {two} to be {word}, but {main}",
        ]
    )
    return (sentence(told),)


# ------------------------------------------------------------------------------- MRPC and QQP


def mrpc(rng: Random, same: bool) -> tuple[str, str]:
    """Two sentences: the same facts said differently, or nearly the same words, other facts."""
    kind = rng.randrange(5)
    if kind == 0:  # a comparison
        one, two = nouns(rng, 2)
        more, less = COMPARE[rng.randrange(len(COMPARE))][:: rng.choice([1, -1])]
        place = rng.choice(["", " " + rng.choice(PLACES)])
        first = f"{one}{place} was {more} than {two}"
        if rng.random() < 0.5:
            second = f"{two} was {less if same else more} than {one}{place}"
        else:
            second = f"{one}{place} was {more if same else less} than {two}"
            if same:
                second = f"compared to {two}, {one}{place} was {more}"
        return sentence(first), sentence(second)
    event = draw_event(rng, place=0.5, time=0.4)
    if kind == 1:  # an order in time
        early, late = draw_event(rng), draw_event(rng)
        first = f"{say(early, rng)} before {say(late, rng)}"
        if not same:
            early, late = rng.choice([(late, early), (early.swapped(), late)])
        second = rng.choice(
            [
                f"{say(late, rng)} after {say(early, rng)}",
                f"after {say(early, rng)}, {say(late, rng)}",
                f"before {say(late, rng)}, {say(early, rng)}",
            ]
        )
        return sentence(first), sentence(second)
    changed = event
    if not same:
        changed = event.swapped()
        if rng.random() < 0.25:
            changed = event._replace(verb=rng.randrange(len(VERBS)))
    if changed == event and not same:
        changed = event.swapped()
    return sentence(say(event, rng)), sentence(say(changed, rng))


def question(event: Event, wanted: str, rng: Random) -> str:
    """Ask for one part of an event: agent, patient, place, time, or whether it happened."""
    agent, verb, patient = event.agent, VERBS[event.verb][rng.randrange(2)], event.patient
    active, passive = f"did {agent} {verb} {patient}", f"was {patient} {past(verb)} by {agent}"
    ways = {
        "agent": (f"who {past(verb)} {patient}", f"by whom was {patient} {past(verb)}"),
        "patient": (f"whom did {agent} {verb}", f"who was {past(verb)} by {agent}"),
        "place": (f"where {active}", f"in which place {passive}"),
        "time": (f"when {active}", f"at what time {passive}"),
        "truth": (active, passive),
        "reason": (f"why {active}", f"for what reason {passive}"),
    }
    asked = rng.choice(ways[wanted])
    known = [event.place if wanted != "place" else "", event.time if wanted != "time" else ""]
    return " ".join(part for part in (asked, *known) if part)


def qqp(rng: Random, same: bool) -> tuple[str, str]:
    """Two questions: asking for the same thing or not."""
    if rng.random() < 0.15:
        one, two = nouns(rng, 2)
        more, less = COMPARE[rng.randrange(len(COMPARE))][:: rng.choice([1, -1])]
        first = f"is {one} {more} than {two}"
        if rng.random() < 0.5:
            second = f"is {two} {less if same else more} than {one}"
        else:
            second = f"is it {'true' if same else 'false'} that {one} is {more} than {two}"
        return sentence(first, "?"), sentence(second, "?")
    event = draw_event(rng, place=0.4)
    wanted = rng.choice(["agent", "patient", "place", "time", "truth", "reason"])
    other, asked = event, wanted
    if not same:
        if wanted in ("agent", "patient"):  # who helped X - whom did X help
            other, asked = event.swapped(), "patient" if wanted == "agent" else "agent"
        else:
            other = event.swapped()
        if rng.random() < 0.2:
            other = event._replace(
                verb=(event.verb + 1 + rng.randrange(len(VERBS) - 1)) % len(VERBS)
            )
            asked = wanted
    first, second = question(event, wanted, rng), question(other, asked, rng)
    return sentence(first, "?"), sentence(second, "?")


# ------------------------------------------------------------------------------------- STS-B


def similarity(event: Event, other: Event) -> float:
    """How much of one event the other tells, 5 (all) to 0.

    Another verb or participant costs 1.5, a more general noun 0.5, another place or time 1, a
    missing one 0.5; exchanged roles cost 2.5.
    """

    def participants(one: Event, two: Event) -> float:
        cost = 0.0
        for had, has in ((one.agent, two.agent), (one.patient, two.patient)):
            if had != has:
                cost += 0.5 if has == f"the {HYPERNYM.get(had[4:])}" else 1.5
        return cost

    cost = min(participants(event, other), 2.5 + participants(event.swapped(), other))
    cost += 1.5 * (event.verb != other.verb)
    for had, has in ((event.place, other.place), (event.time, other.time)):
        if had != has:
            cost += 1.0 if had and has else 0.5
    return max(0.0, 5.0 - cost)


def stsb(rng: Random, score: float) -> tuple[str, str]:
    """Two sentences that share `score` of their meaning."""
    while True:
        event = other = draw_event(rng, place=0.6, time=0.3)
        fresh = draw_event(rng, place=0.6, time=0.3)
        for part in rng.sample(["agent", "verb", "patient", "place", "time"], rng.randrange(4)):
            other = other._replace(**{part: getattr(fresh, part)})
        if rng.random() < 0.4:
            other = other.swapped()
        if rng.random() < 0.3 and other.agent[4:] in HYPERNYM:
            other = other._replace(agent=f"the {HYPERNYM[other.agent[4:]]}")
        if similarity(event, other) == score and other.agent != other.patient:
            return sentence(say(event, rng)), sentence(say(other, rng))


# -------------------------------------------------------------------------------------- MNLI

NLI = ("entailment", "neutral", "contradiction")
QUANTIFIERS = ("all", "some", "no", "not all")


def event_relation(premise: bool, hypothesis: bool, detail: str) -> str:
    """What a claim about an event says about another claim.

    premise, hypothesis: does each claim that the event happened?
    detail: does the hypothesis tell "less" than the premise, the "same", "more", or of an
    "other" event?
    """
    if detail == "other":
        return "neutral"
    if premise == hypothesis:
        allowed = ("same", "less") if premise else ("same", "more")
        return "entailment" if detail in allowed else "neutral"
    allowed = ("same", "less") if premise else ("same", "more")
    return "contradiction" if detail in allowed else "neutral"


def quantifier_relation(premise: str, hypothesis: str) -> str:
    """The square of opposition, for nouns that exist."""
    opposite = {"all": "not all", "not all": "all", "some": "no", "no": "some"}
    follows = {
        "all": {"all", "some"},
        "no": {"no", "not all"},
        "some": {"some"},
        "not all": {"not all"},
    }
    if hypothesis in follows[premise]:
        return "entailment"
    return "contradiction" if opposite[hypothesis] in follows[premise] else "neutral"


def draw_mnli(rng: Random, people: list[str], names: list[str]) -> tuple[str, str, str]:
    """A premise, a hypothesis and the relation between them."""
    kind = rng.randrange(5)
    if kind == 0:  # comparisons
        one, two = nouns(rng, 2, people + names)
        more, less = COMPARE[rng.randrange(len(COMPARE))][:: rng.choice([1, -1])]
        apart = [pair[0] for pair in COMPARE if more not in pair]
        premise = f"{one} was {more} than {two}"
        label = rng.choice(NLI)
        if label == "entailment":
            told = rng.choice([f"{two} was {less} than {one}", f"{two} was not {more} than {one}"])
        elif label == "contradiction":
            told = rng.choice(
                [
                    f"{two} was {more} than {one}",
                    f"{one} was {less} than {two}",
                    f"{two} was not {less} than {one}",
                ]
            )
        else:
            told = f"{one} was {rng.choice(['', 'not '])}{rng.choice(apart)} than {two}"
            if rng.random() < 0.5:
                told = f"{two} was {rng.choice(['', 'not '])}{rng.choice(apart)} than {one}"
        return sentence(premise), sentence(told), label
    if kind == 1:  # quantifiers
        noun, action = rng.choice(people), rng.choice(ACTIONS)
        place = rng.choice([""] + [" " + place for place in PLACES])
        first, second = rng.choice(QUANTIFIERS), rng.choice(QUANTIFIERS)
        return (
            sentence(f"{first} {noun}s {action}{place}"),
            sentence(f"{second} {noun}s {action}{place}"),
            quantifier_relation(first, second),
        )
    agent, patient = nouns(rng, 2, people + names)
    event = draw_event(rng)._replace(agent=agent, patient=patient, holds=rng.random() < 0.6)
    place, detail = rng.choice(PLACES), rng.choice(["less", "same", "more", "other", "same"])
    premise = event._replace(place=place if detail in ("less",) or rng.random() < 0.3 else "")
    if detail == "more" and premise.place:
        premise = premise._replace(place="")
    told = premise._replace(holds=rng.random() < 0.6)
    general = [noun for noun in (agent[4:],) if noun in HYPERNYM]
    if detail == "less":
        told = told._replace(place="")
    elif detail == "more":
        told = told._replace(place=place)
    elif detail == "other":
        told = told.swapped()
    if general and rng.random() < 0.3:  # the noun, instead of the place, is the detail
        kind_of = f"{'an' if HYPERNYM[general[0]][0] in 'ao' else 'a'} {HYPERNYM[general[0]]}"
        if detail == "less":
            told = premise._replace(holds=True, agent=kind_of)
            premise = premise._replace(holds=True)
        elif detail == "more":
            premise = premise._replace(agent=kind_of, holds=True)
            told = told._replace(place="", holds=True)
    label = event_relation(premise.holds, told.holds, detail)
    return sentence(say(premise, rng, False)), sentence(say(told, rng, False)), label


def mnli(rng: Random, label: str, other_genre: bool = False) -> tuple[str, str]:
    """A premise and a hypothesis in the wanted relation.

    The matched genre ("town") tells of people, the other one ("zoo") of animals and names.
    """
    people, names = (KINDS["animal"], NAMES) if other_genre else (PEOPLE, [])
    while True:
        premise, hypothesis, found = draw_mnli(rng, people, names)
        if found == label:
            return premise, hypothesis


# ------------------------------------------------------------------------------ QNLI and RTE


def draw_story(rng: Random) -> tuple[str, list[Event]]:
    """A sentence that tells two events with three participants, and the events."""
    one, two, three = nouns(rng, 3)
    verb, then = rng.sample(range(len(VERBS)), 2)
    first, second = Event(one, verb, two), Event(one, then, three)
    said, and_then = past(VERBS[verb][0]), past(VERBS[then][0])
    kind = rng.randrange(6)
    if kind == 0:
        told = f"{one} who {said} {two} {and_then} {three}"
    elif kind == 1:
        told, first = f"{one} whom {two} {said} {and_then} {three}", first.swapped()
    elif kind == 2:
        told = f"{one} {said} {two} and {and_then} {three}"
    elif kind == 3:
        told = f"{one} was {said} by {two} and {and_then} {three}"
        first = first.swapped()
    elif kind == 4:
        told = f"{one} was {and_then} by {three} who {said} {two}"
        first, second = Event(three, verb, two), second.swapped()
    else:
        told = f"{one} {and_then} {three} who was {said} by {two}"
        first = Event(two, verb, three)
    return told, [first, second]


def rte(rng: Random, follows: bool) -> tuple[str, str]:
    """A sentence with two events, and a claim made of its words."""
    told, events = draw_story(rng)
    event = rng.choice(events)
    if not follows:
        people = sorted({name for e in events for name in (e.agent, e.patient)})
        while event in events:
            agent, patient = rng.sample(people, 2)
            event = Event(agent, rng.choice(events).verb, patient)
    return sentence(told), sentence(clause(event, rng.random() < 0.4))


def qnli(rng: Random, answers: bool) -> tuple[str, str]:
    """A question and a sentence that does or does not contain the answer."""
    if rng.random() < 0.5:
        told, events = draw_story(rng)
        event, wanted = rng.choice(events), rng.choice(["agent", "patient"])
        if not answers:  # ask about a pair of participant and verb that the sentence lacks
            known = {
                (getattr(e, side), e.verb)
                for e in events
                for side in ("agent", "patient")
                if side != wanted
            }
            people = sorted({name for e in events for name in (e.agent, e.patient)})
            pairs = [(p, e.verb) for p in people for e in events if (p, e.verb) not in known]
            person, verb = rng.choice(pairs)
            event = Event(person, verb, person)
        return sentence(question(event, wanted, rng), "?"), sentence(told)
    event = draw_event(rng, place=0.6, time=0.5)
    wanted = rng.choice(["agent", "patient", "place", "time"])
    if wanted in ("place", "time"):
        event = event._replace(**{wanted: rng.choice(PLACES if wanted == "place" else TIMES)})
    asked = event._replace(place="", time="")
    if not answers:
        if wanted in ("place", "time") and rng.random() < 0.3:
            event = event._replace(**{wanted: ""})
        else:
            asked = asked.swapped()
    return sentence(question(asked, wanted, rng), "?"), sentence(say(event, rng))
