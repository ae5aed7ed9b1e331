"""Everyday English sentences, put together from templates and word lists."""

import re

import numpy as np

_WORDS = {
    "name": """Anna Ben Clara David Emma Frank Grace Henry Isabel James Kate Leo Maria Noah Olivia Paul
        Rose Sam Theo Vera Will Zoe George Joyce Arthur Beth Charlie Hugh Ruth Thomas Judy Yasmin Victor
        Megan Oscar Jean""",
    "person": """brother|sister|mother|father|uncle|aunt|cousin|neighbor|teacher|doctor|nurse|driver|
        farmer|painter|singer|baker|waiter|pilot|student|captain|judge|lawyer|plumber|gardener|writer|
        actor|dentist|butcher|engineer|librarian|friend|boss|child|grandfather|daughter|son|husband|wife|
        guest|stranger|team|cook|soldier|nephew|guard|tourist|customer|manager|boy|girl""",
    "animal": """dog|cat|horse|bird|mouse|sheep|cow|goat|duck|fox|bear|rabbit|fish|tiger|monkey|frog|pony|
        wolf|whale|puppy|kitten|chicken|pigeon|owl|donkey|zebra|lion|squirrel|spider|bee""",
    "thing": """book|letter|lamp|window|table|chair|picture|umbrella|bicycle|basket|bottle|camera|candle|
        clock|coat|cup|door|drum|fence|flag|garden|guitar|hammer|hat|key|kite|knife|ladder|map|mirror|
        necklace|paper|pencil|phone|piano|pillow|purse|radio|ring|rope|rug|scarf|shirt|shoe|shovel|spoon|
        suitcase|ticket|toy|vase|wallet|watch|wheel|whistle|blanket|box|brush|bucket|button|carpet|engine|
        fork|glove|jacket|jar|jewel|lock|machine|magazine|needle|notebook|oven|package|parcel|plate|pot|
        quilt|roof|sofa|statue|sweater|tent|towel|treasure|van|violin|wagon|shelf|bell|boat|house|bridge|
        car|song|story|message|present|newspaper|puzzle|poem|photograph|computer|ball""",
    "food": """bread|butter|cheese|soup|rice|fish|chicken|salad|cake|chocolate|sugar|honey|milk|coffee|tea|
        orange juice|lemonade|apple pie|potatoes|carrots|tomatoes|onions|mushrooms|beans|noodles|pancakes|
        cookies|ice cream|peaches|cherries|grapes|strawberries|pizza|sausages|eggs|porridge|yogurt|
        vegetables|pasta|fresh fruit|toast|jam|pepper""",
    "place": """the kitchen|the garden|the park|the market|the station|the library|the school|the office|
        the museum|the beach|the river|the forest|the village|the city|the bridge|the harbor|the church|
        the hospital|the theater|the airport|the mountain|the valley|the lake|the island|the street|
        the corner|the bakery|the hotel|the bathroom|the garage|the farm|the zoo|the castle|the square|
        the bus stop|the playground|the basement|the attic|the old mill|the coffee shop|the bookshop|
        the studio|my house|our yard|the front door|the field|the pool""",
    "time": """today|tomorrow|yesterday|tonight|this morning|this evening|on Monday|on Tuesday|
        on Wednesday|on Thursday|on Friday|on Saturday|on Sunday|next week|last year|every day|at noon|
        after lunch|before dinner|in the summer|in January|in March|in August|all night|right now|
        once a month|at half past seven|for an hour|since April|in the spring|during the winter|
        in five minutes|later|soon|again|twice a week|every weekend|in October""",
    "adjective": """big|small|red|blue|green|yellow|purple|brown|white|black|pink|gray|old|new|young|
        bright|dark|heavy|light|warm|cold|quiet|loud|clean|dirty|empty|full|soft|hard|round|square|sharp|
        smooth|strange|simple|famous|broken|beautiful|golden|wooden|tiny|huge|narrow|wide|cheap|expensive|
        shiny|rusty|curious|lovely|fresh|thick|thin|ordinary|unusual|enormous|precious|plain|fancy|modern|
        ancient|favorite|useful|colorful""",
    "feeling": """happy|sad|tired|hungry|thirsty|angry|surprised|afraid|nervous|proud|busy|calm|sorry|
        lonely|excited|bored|glad|worried|ready|sleepy|cheerful|grateful|confused|sure|jealous|brave|
        polite|shy|patient|careful|wrong|right""",
    "verb": """found|lost|bought|sold|opened|closed|painted|cleaned|carried|borrowed|dropped|fixed|moved|
        pushed|pulled|watched|washed|touched|measured|wanted|chose|held|kept|brought|noticed|forgot|
        admired|packed|wrapped|saved|stole|showed|enjoyed|liked|needed|shook|covered|caught|threw|changed|
        built|mended|polished|hid|discovered|finished""",
    "action": """walk|run|swim|dance|sing|read|write|draw|cook|sleep|travel|play|work|study|rest|wait|
        laugh|listen|speak|jump|help|go|stay|leave|drive|think|talk|eat|drink|practice|smile|join us|
        come back|try again|begin|stop|turn around|sit down|stand up|fly""",
    "doing": """walking|running|swimming|dancing|singing|reading|writing|drawing|cooking|sleeping|
        traveling|playing|working|waiting|laughing|listening|jumping|shouting|hiding|growing|falling|
        crying|moving|fishing|climbing|skating|whispering|arguing|cheering|measuring wood""",
    "manner": """slowly|quickly|quietly|loudly|carefully|happily|sadly|gently|suddenly|easily|badly|
        politely|together|alone|bravely|usually|early|late|outside|well enough|by mistake|on purpose|
        without a word|with great pleasure""",
    "number": """two three four five six seven eight nine ten eleven twelve thirteen fifteen twenty thirty
        forty fifty ninety""",
    "weather": """rainy|sunny|cloudy|windy|foggy|snowy|stormy|freezing|warm|cold|dry|humid|hot|cool|mild""",
    "subject": """music|history|science|English|painting|football|tennis|chess|poetry|medicine|cooking|
        gardening|astronomy|biology|geography|photography|architecture|philosophy|language|mathematics|
        fashion|movies""",
    "plural": """apples|flowers|shoes|boxes|leaves|stones|stars|clouds|trees|windows|people|children|
        horses|birds|boats|houses|letters|pictures|stories|questions|answers|dreams|friends|numbers|colors|
        rivers|hills|lights|buses|bridges|roses|watches|feathers|shadows|voices|games|shells|oranges|
        jewels|mountains""",
    "opinion": """wonderful|terrible|amazing|boring|important|impossible|difficult|easy|dangerous|fun|
        silly|funny|awful|perfect|interesting|delicious|horrible|fantastic|charming|disgusting|marvelous|
        shocking|true|a good idea|a huge mistake|worth it|unbelievable|a secret|no problem|good news|
        a pity|a pleasure""",
}  # fmt: skip

_TEMPLATES = """My {person} {verb} the {adjective} {thing}.
The {adjective} {animal} is {doing} in {place}.
{name} {verb} a {thing} near {place} {time}.
Have you seen my {adjective} {thing}?
I would like some {food} and {food}, please.
We will {action} in {place} {time}.
The weather is {weather} {time}.
It was a {weather} day at {place}.
Could you bring me the {thing} from {place}?
{name} and {name} are very {feeling} {time}.
I am so {feeling} that you came {time}.
There are {number} {plural} in {place}.
Please put the {thing} beside the {thing}.
Why is the {animal} {doing} {manner}?
She always wanted to {action} with her {person}.
He thinks that {subject} is {opinion}.
They {verb} {number} {adjective} {plural} {time}.
What did the {person} say about the {thing}?
Don't forget the {food} and the {thing}.
{name} wants to {action}, but {name} is {feeling}.
How much is the {adjective} {thing}?
I think this {thing} is {opinion}.
The {person} {verb} it {manner}.
Where can I find {food} {time}?
You should {action} {manner} {time}.
Let's {action} at {place}.
My {animal} eats {food} {time}.
The {thing} on the {thing} is {adjective} and {adjective}.
We heard {number} {plural} behind {place}.
If you are {feeling}, we can {action}.
Nobody {verb} the {person}'s {thing}.
Is your {person} {feeling}?
{subject} is my favorite thing in the world.
I learned {subject} from a {adjective} {person}.
Look at those {adjective} {plural}!
That is {opinion}!
The {food} was {opinion}, thank you.
Would you rather {action} or {action}?
It is too {weather} to {action}.
{name} lives between {place} and {place}.
Every {person} should have a {adjective} {thing}.
The {animal} and the {animal} are {doing} {manner}.
I saw {name} {doing} near {place}.
This {adjective} {thing} belongs to my {person}.
Can we {action} {time}?
She gave me {number} {plural} and a {thing}.
I have never been so {feeling}.
Who {verb} my {food}?
{number} {plural} are not enough.
Tell {name} to {action} {manner}."""

_SHORT = (
    "Good morning.|Hello there!|Thank you very much.|See you tomorrow.|How are you?|Nice to meet you.|"
    "What a surprise!|Good night, sleep well.|Excuse me, please.|I don't know.|Of course I can.|"
    "Maybe later.|Never mind.|That's enough.|Welcome back!|Come in!|Are you sure?|What happened?|"
    "I beg your pardon?|Well done!|Happy birthday!|Good luck.|Take care of yourself.|You're welcome.|"
    "Be careful!|Let me see.|I'm on my way.|Not at all.|Yes, exactly.|Oh no, not again!|Wait for me!|"
    "What time is it?|Please help me.|I love it.|Where are you?|Go away!|How strange.|My name is {name}.|"
    "Hi, {name}!|Goodbye, {name}.|I'm {feeling}.|You look {feeling}.|It's {opinion}.|Time for {food}."
).split("|")


def _choices(text: str) -> list[str]:
    parts = re.split(r"\s*\|\s*", text.strip()) if "|" in text else text.split()
    return [" ".join(part.split()) for part in parts if part]


_CHOICES = {kind: _choices(text) for kind, text in _WORDS.items()}
_LONG = _TEMPLATES.split("\n")
_SHORT_ODDS = 0.12


def vocabulary() -> set[str]:
    """Every word, in lower case, that a sentence can hold."""
    texts = [*_LONG, *_SHORT, *(choice for choices in _CHOICES.values() for choice in choices)]
    return {word for text in texts for word in re.findall(r"[a-z']+", re.sub(r"{\w+}", " ", text).lower())}


def sample_sentence(rng: np.random.Generator) -> str:
    """A random sentence of 2 to 14 words, one in eight a short everyday phrase."""
    templates = _SHORT if rng.random() < _SHORT_ODDS else _LONG
    template = templates[int(rng.integers(len(templates)))]

    def choose(match: re.Match[str]) -> str:
        choices = _CHOICES[match[1]]
        return choices[int(rng.integers(len(choices)))]

    text = re.sub(r"{(\w+)}", choose, template)
    text = re.sub(r"\ba(?= [aeiou])", "an", text)
    return text[0].upper() + text[1:]
