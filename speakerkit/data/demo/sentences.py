"""English sentences by chance: some hundred million of them, none borrowed."""

from __future__ import annotations

import numpy as np

WORDS = {
    "who": "Anna|Victor|my sister|the baker|our teacher|a young doctor|the old sailor|Professor Green|the children|"
    "her cousin|the bus driver|nobody|everyone|the gardener|that tall man|the judge|a curious tourist|Maria|Jonathan|"
    "the whole team|his grandmother|the engineer|a farmer|the night nurse|Oliver|the painter|two students|the captain",
    "does": "carries|found|painted|forgot|sold|borrowed|watched|repaired|described|counted|hid|lost|bought|noticed|"
    "photographed|measured|broke|cleaned|opened|designed|admired|wrapped|chose|delivered|weighed|washed|shared|needs",
    "adjective": "yellow|broken|heavy|quiet|ancient|cheap|wooden|bright|tiny|enormous|frozen|gentle|rusty|strange|"
    "curved|shiny|narrow|expensive|dusty|fresh|silver|purple|hollow|smooth|thick|useful|foreign|bitter|worn|famous",
    "thing": "basket|telescope|violin|window|envelope|kettle|bicycle|map|coat|bridge|lantern|mirror|puzzle|garden|"
    "engine|jacket|book|camera|boat|chair|cup of tea|garage key|shelf|treasure|ladder|umbrella|piano|sandwich|clock|"
    "letter|blanket|hammer|picture|vase|radio|ticket|orange|suitcase|drum|fence|rope|cheese|wheel|pencil|newspaper",
    "where": "behind the station|near the river|in the kitchen|across the valley|under the bridge|at the market|"
    "beside the church|on the roof|in a small village|outside the museum|along the coast|between two houses|"
    "by the lake|above the shop|at the airport|in the library|through the forest|on the northern shore|in room nine",
    "when": "yesterday|before sunrise|on Thursday|last winter|every evening|after lunch|in the middle of the night|"
    "this morning|during the storm|at half past six|two weeks ago|in August|once a year|right now|at the weekend",
    "why": "because it was raining|although nobody asked|while the music played|so that we could leave early|"
    "since the shop was closed|if the weather allows it|until the lights went out|as far as I remember|"
    "because the road was blocked|though it seemed impossible|whenever visitors arrive|unless something goes wrong",
    "how": "slowly|carefully|without a word|very quickly|by accident|with great joy|in silence|as usual|proudly|"
    "almost secretly|for the second time|with both hands|rather badly|on purpose|with a loud laugh|patiently",
    "number": "three|seven|twelve|fifteen|twenty-one|thirty|forty-eight|sixty|ninety-nine|a hundred|two thousand|half",
    "said": "I think|they say|we believe|she told me|it is true that|you know|perhaps|to be honest|he claims that",
}
CHOICES = {kind: tuple(words.split("|")) for kind, words in WORDS.items()}
TEMPLATES = (
    "{who} {does} the {adjective} {thing} {where}",
    "{when}, {who} {does} {number} of the {adjective} {thing}s {how}",
    "{said} {who} {does} a {thing} {where} {why}",
    "there was a {adjective} {thing} {where} {when}",
    "{who} {does} it {how}, {why}",
    "could you bring the {adjective} {thing} {where} {when}?",
    "the {thing} and the {adjective} {thing} cost {number} pounds {when}",
    "{why}, {who} {does} every {thing} {how}",
    "{said} the {adjective} {thing} belongs {where}",
    "how many {adjective} {thing}s were {where} {when}?",
    "{number} people saw {who} {where}, {why}",
    "please put the {thing} {where}, not {where}",
)


def draw_sentence(rng: np.random.Generator) -> str:
    """One sentence of about 6 to 16 words, ending in a full stop or a question mark."""
    text = str(rng.choice(TEMPLATES))
    while "{" in text:
        before, _, rest = text.partition("{")
        kind, _, after = rest.partition("}")
        text = before + str(rng.choice(CHOICES[kind])) + after
    return text[0].upper() + text[1:] + ("" if text.endswith("?") else ".")


def draw_text(rng: np.random.Generator, words: int) -> str:
    """Sentences of at least ``words`` words together."""
    text = draw_sentence(rng)
    while len(text.split()) < words:
        text += " " + draw_sentence(rng)
    return text
