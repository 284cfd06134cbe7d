"""The built-in tasks: a seeded grammar of readable English that writes eight GLUE-shaped tasks.

Every label follows from what a sentence means, never from which words it contains: who did what
to whom, what a negation covers, which clause of a "but" counts, which noun a verb agrees with.
The meaning is built first (an `Event`, a `Claim`, …), the label is computed from it, and the
sentence is one of several ways to say it. There is no label noise.

`generate(folder)` writes the tasks in GLUE's official folder layout and a corpus for masked
language modelling. The same seed gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import Random
from typing import NamedTuple

# ------------------------------------------------------------------------------------- words

KINDS = {
    "artist": "singer painter writer actor dancer poet drummer juggler".split(),
    "worker": "farmer baker gardener waiter plumber driver miner porter".split(),
    "official": "judge lawyer mayor soldier guard clerk sheriff senator".split(),
    "animal": "dog cat horse rabbit parrot donkey tiger monkey bear eagle camel goat".split(),
}
HYPERNYM = {noun: kind for kind, nouns in KINDS.items() for noun in nouns}
PEOPLE = [noun for kind in ("artist", "worker", "official") for noun in KINDS[kind]]
PEOPLE += "doctor teacher nurse pilot student sailor king queen tourist hunter".split()
NAMES = (
    "Anna Ben Clara David Emma Felix Grace Henry Julia Oscar Peter Ruth Simon Tina Victor Walter"
).split()

# Each pair means the same; all of them are regular, so that past and participle agree.
VERBS = [
    pair.split("/")
    for pair in "help/assist phone/call push/shove follow/chase warn/alert praise/applaud "
    "blame/accuse hire/employ fool/deceive scare/frighten rescue/save greet/welcome "
    "admire/respect annoy/irritate question/interview love/adore hate/detest punish/discipline "
    "injure/harm guide/escort observe/watch thank/acknowledge attack/assault insult/offend "
    "obey/heed consult/ask appoint/select ignore/neglect".split()
]
ACTIONS = (
    "danced worked waited laughed cooked jumped shouted rested smiled coughed prayed yawned".split()
)
PLACES = [
    f"{preposition} the {noun}"
    for preposition, nouns in {
        "in": "garden kitchen library museum park office hotel village forest theater bank",
        "at": "market station school harbor airport palace",
        "near": "bridge river castle church lake tower",
    }.items()
    for noun in nouns.split()
]
TIMES = [f"on {day}day" for day in "Mon Tues Wednes Thurs Fri Satur Sun".split()]
TIMES += ["in the morning", "in the evening", "last week", "last year"]
LOOKS = (
    "young old tall short rich poor quiet loud brave clever famous hungry tired shy proud lazy"
).split()
COMPARE = [
    pair.split("/")
    for pair in "older/younger taller/shorter richer/poorer faster/slower stronger/weaker "
    "happier/sadder".split()
]
ASPECTS = (
    "film plot acting music script cast ending dialogue story camera humor opening hero "
    "villain song costume"
).split()
GOOD = (
    "great good brilliant charming clever funny moving fresh warm gripping lovely superb "
    "delightful original elegant honest touching splendid witty wonderful "
    "superior subtle vivid graceful smart thrilling tender"
).split()
BAD = (
    "awful bad boring dull clumsy flat stale cold tedious ugly terrible dreadful silly lifeless "
    "messy dishonest forced shallow weak horrible "
    "stupid clueless noisy pointless lame empty vulgar"
).split()


def past(verb: str) -> str:
    """The past tense, which is also the participle, of a regular verb."""
    return verb + ("d" if verb.endswith("e") else "ed")


def present(verb: str) -> str:
    """The third person singular of a regular verb."""
    return verb + ("es" if verb.endswith(("sh", "ch", "ss")) else "s")


def sentence(text: str, mark: str = ".") -> str:
    """Capital first letter, closing mark."""
    return text[0].upper() + text[1:] + mark


# ------------------------------------------------------------------------------------- events


class Event(NamedTuple):
    """Who did what to whom, perhaps where and when. `verb` is an index into VERBS."""

    agent: str
    verb: int
    patient: str
    place: str = ""
    time: str = ""
    holds: bool = True

    def swapped(self) -> Event:
        """The same event with the roles exchanged."""
        return self._replace(agent=self.patient, patient=self.agent)


def nouns(rng: Random, count: int, pool: list[str] | None = None) -> list[str]:
    """Distinct participants: "the doctor", sometimes a name."""
    drawn = rng.sample(pool or PEOPLE + KINDS["animal"] + NAMES, count)
    return [word if word[0].isupper() else f"the {word}" for word in drawn]


def draw_event(rng: Random, place: float = 0.0, time: float = 0.0) -> Event:
    """A random event; `place` and `time` are the chances that it says where and when."""
    agent, patient = nouns(rng, 2)
    return Event(
        agent,
        rng.randrange(len(VERBS)),
        patient,
        rng.choice(PLACES) if rng.random() < place else "",
        rng.choice(TIMES) if rng.random() < time else "",
    )


def clause(event: Event, passive: bool = False, word: int = 0) -> str:
    """Say an event in the active or the passive, with the first or the second synonym."""
    verb = VERBS[event.verb][word]
    if passive:
        told = f"{event.patient} was {'' if event.holds else 'not '}{past(verb)} by {event.agent}"
    elif event.holds:
        told = f"{event.agent} {past(verb)} {event.patient}"
    else:
        told = f"{event.agent} did not {verb} {event.patient}"
    return " ".join(part for part in (told, event.place, event.time) if part)


def say(event: Event, rng: Random, front: bool = True) -> str:
    """One of the ways to say an event: voice, synonym, and what comes first are drawn."""
    told = clause(event, rng.random() < 0.5, rng.randrange(2))
    first = event.place or event.time
    if front and first and rng.random() < 0.3:
        told = f"{first}, {told.replace(' ' + first, '', 1)}"
    return told


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


# ------------------------------------------------------------------------------------- files


class Task(NamedTuple):
    """How a task is drawn, which labels it has, and how GLUE lays its files out."""

    folder: str
    draw: Callable[..., tuple[str, ...]]
    labels: tuple  # what `draw` is asked for, in turn, so that classes are balanced
    header: str  # column names, "" for none
    row: Callable[[int, tuple[str, ...], object], tuple]  # columns of one row
    tail: dict  # how the corpus says the label, in the sentence after the example
    train: int = 3000
    dev: dict = {"dev": {}}  # file name -> further arguments of `draw`


BOTH = (True, False)
SCORES = tuple(step / 2 for step in range(11))
SHARED = "nothing nothing little little little something something much much nearly everything"
MNLI_HEADER = (
    "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse "
    "sentence2_parse sentence1 sentence2 label1 gold_label"
)


def entailed(label: object) -> str:
    """GLUE's name of a two-way label."""
    return "entailment" if label else "not_entailment"


TASKS = {
    "cola": Task(
        "CoLA",
        cola,
        BOTH,
        "",
        lambda i, text, y: ("mini", int(y), "" if y else "*", *text),
        {},
    ),
    "sst2": Task(
        "SST-2",
        sst2,
        BOTH,
        "sentence label",
        lambda i, text, y: (*text, int(y)),
        {True: "I liked it.", False: "I disliked it."},
    ),
    "mrpc": Task(
        "MRPC",
        mrpc,
        BOTH,
        "Quality,#1 ID,#2 ID,#1 String,#2 String",
        lambda i, text, y: (int(y), 2 * i, 2 * i + 1, *text),
        {True: "Both agree.", False: "Both differ."},
    ),
    "qqp": Task(
        "QQP",
        qqp,
        BOTH,
        "id qid1 qid2 question1 question2 is_duplicate",
        lambda i, text, y: (i, 2 * i, 2 * i + 1, *text, int(y)),
        {True: "Both agree.", False: "Both differ."},
    ),
    "stsb": Task(
        "STS-B",
        stsb,
        SCORES,
        "index genre filename year old_index source1 source2 sentence1 sentence2 score",
        lambda i, text, y: (i, "mini", "-", "-", i, "-", "-", *text, f"{y:.3f}"),
        {y: f"They share {word}." for y, word in zip(SCORES, SHARED.split(), strict=True)},
    ),
    "mnli": Task(
        "MNLI",
        mnli,
        NLI,
        MNLI_HEADER,
        lambda i, text, y: (i, i, i, "mini", *"----", *text, y, y),
        dict(zip(NLI, ("This is certain.", "This is possible.", "This is wrong."), strict=True)),
        4000,
        {"dev_matched": {}, "dev_mismatched": {"other_genre": True}},
    ),
    "qnli": Task(
        "QNLI",
        qnli,
        BOTH,
        "index question sentence label",
        lambda i, text, y: (i, *text, entailed(y)),
        {True: "This answers it.", False: "This ignores it."},
    ),
    "rte": Task(
        "RTE",
        rte,
        BOTH,
        "index sentence1 sentence2 label",
        lambda i, text, y: (i, *text, entailed(y)),
        {True: "This is certain.", False: "This is open."},
    ),
}
DEV_ROWS = 800
CORPUS_LINES = 6000


def draw_rows(name: str, split: str, seed: int, avoid: set | None = None) -> list[tuple]:
    """The (texts, label) rows of one split; none repeats, and none is in `avoid`."""
    task, rng, seen = TASKS[name], Random(f"{seed} {name} {split}"), set(avoid or ())
    count, rows = task.train if split == "train" else DEV_ROWS, []
    while len(rows) < count:
        label = task.labels[len(rows) % len(task.labels)]
        text = task.draw(rng, label, **task.dev.get(split, {}))
        if len(set(text)) == len(text) and frozenset(text) not in seen:
            seen.add(frozenset(text))
            rows.append((text, label))
    rng.shuffle(rows)
    return rows


def dev_texts(seed: int = 0) -> set:
    """The texts of every dev row, as sets, whichever comes first: what training may not see."""
    return {
        frozenset(text)
        for name, task in TASKS.items()
        for split in task.dev
        for text, _ in draw_rows(name, split, seed)
    }


def documents(
    seed: int = 0,
    avoid: set | None = None,
    agreeing: float = 0.5,
    shares: Mapping[str, float] | None = None,
) -> Iterator[str]:
    """An endless corpus: an example of some task, followed by a sentence that says its label.

    Grammatical sentences stand alone, in pairs. `agreeing` is the share of pairs that are drawn
    to mean the same, to answer or to follow; the others have any label. What is in `avoid` (the
    dev rows) never occurs. `shares` says how often each task is drawn; equally, by default.
    """
    rng, avoid = Random(f"{seed} corpus"), dev_texts(seed) if avoid is None else avoid
    names = list(TASKS)
    while True:
        weights = [shares.get(n, 0.0) for n in names] if shares else None
        name = rng.choices(names, weights)[0] if weights else rng.choice(names)
        task = TASKS[name]
        label = rng.choice(task.labels)
        if name != "sst2" and rng.random() < agreeing:
            label = max(task.labels) if name == "stsb" else task.labels[0]
        if name == "cola":
            text = (*task.draw(rng, True), *task.draw(rng, True))
            told = [frozenset([one]) for one in text]
        else:
            further = {"other_genre": rng.random() < 0.3} if name == "mnli" else {}
            text = task.draw(rng, label, **further)
            told = [frozenset(text)]
        if avoid.isdisjoint(told):
            yield " ".join((*text, task.tail.get(label, ""))).strip()


def write_lines(path: Path, lines: list[str]) -> None:
    """Write a text file, the same bytes on every system."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + "\n" for line in lines).encode())


def generate(folder: str | Path, seed: int = 0) -> None:
    """Write the eight tasks and `corpus.txt` into a folder, in GLUE's official layout."""
    folder, avoid = Path(folder), dev_texts(seed)
    for name, task in TASKS.items():
        for split in ("train", *task.dev):
            rows = draw_rows(name, split, seed, avoid if split == "train" else None)
            lines = ["\t".join(map(str, task.row(i, *row))) for i, row in enumerate(rows)]
            header = "\t".join(task.header.split("," if "," in task.header else " "))
            write_lines(folder / task.folder / f"{split}.tsv", [header][: len(header)] + lines)
    stream = documents(seed, avoid)
    write_lines(folder / "corpus.txt", [next(stream) for _ in range(CORPUS_LINES)])


def vocabulary() -> list[str]:
    """Every word of the grammar, lower case, in alphabetical order."""
    from string import punctuation

    stream, words = documents(0, set()), set()
    for _ in range(20000):
        words.update(next(stream).lower().translate(str.maketrans("", "", punctuation)).split())
    return sorted(words)
