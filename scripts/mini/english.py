"""The English of the built-in tasks: its words, events, and the ways to say who did what to whom.

Verbs are regular and plurals end in "s", so that a sentence needs no table of forms.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

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
