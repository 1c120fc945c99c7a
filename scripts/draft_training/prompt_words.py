"""Word lists and templates, all written for this project, of :mod:`draft_training.prompts`."""

from __future__ import annotations


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.strip().split("|")]


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines() if line.strip()]


SLOTS = {
    "name": _split(
        "Maya|Tom|Priya|Luis|Anna|Omar|Grace|Ben|Chloe|Raj|Sofia|Ethan|Lena|Marcus|Nina|Peter|Olivia|Sam|Zoe|Victor|"
        "Hannah|Jamal|Rosa|Felix|Ivy|Noah|Clara|Diego|Amy|Kevin|Julia|Henry|Tara|Oscar|Bella|Leo|Megan|Paul|Ruth|Eric"
    ),
    "item": _split(
        "apples|pencils|marbles|stickers|books|muffins|oranges|toy cars|balloons|cupcakes|postcards|seashells|eggs|"
        "flowers|bottles of water|sandwiches|candles|notebooks|baseball cards|tickets|pizzas|chairs|bracelets|bricks"
    ),
    "job": _split(
        "teacher|nurse|software engineer|chef|gardener|librarian|journalist|pilot|lawyer|scientist|carpenter|farmer|"
        "travel agent|personal trainer|museum guide|doctor|historian|detective|economist|relationship coach|poet"
    ),
    "character": _split(
        "Albert Einstein|Isaac Newton|Cleopatra|Mark Twain|a medieval knight|a pirate captain|Leonardo da Vinci|"
        "a stand-up comedian|a grumpy wizard|Napoleon|a talking dog|an astronaut on Mars|Marie Curie|a robot butler|"
        "Winston Churchill|a football coach|Charles Darwin|a time traveller from the year 2300|Steve Jobs|Batman"
    ),
    "city": _split(
        "Paris|Rome|Tokyo|New York|Berlin|Sydney|Cairo|Rio de Janeiro|Istanbul|Bangkok|Lisbon|Vienna|Barcelona|Prague|"
        "Dublin|Kyoto|Marrakesh|Amsterdam|Cape Town|Vancouver|Edinburgh|Athens|Mexico City|Mumbai|Singapore|Oslo"
    ),
    "topic": _split(
        "remote work|climate change|healthy eating|artificial intelligence|learning a second language|electric cars|"
        "time management|social media|public libraries|space exploration|renewable energy|video games|team sports|"
        "online education|friendship|urban gardening|mental health|personal finance|music festivals|recycling|"
        "biodiversity|volunteering|self-driving cars|minimalism|local food|sleep|digital privacy|reading for pleasure"
    ),
    "science": _split(
        "photosynthesis|plate tectonics|natural selection|black holes|electromagnetic induction|DNA replication|vaccines|"
        "the water cycle|chemical bonding|general relativity|thermodynamics|neural networks|radioactive decay|enzymes|"
        "the greenhouse effect|superconductivity|cell division|ocean currents|the Doppler effect|semiconductors|osmosis|"
        "the Big Bang theory|quantum tunnelling|antibiotic resistance|nuclear fusion|gravity|the human immune system"
    ),
    "history": _split(
        "the French Revolution|the Industrial Revolution|the fall of the Roman Empire|the Renaissance|the Cold War|"
        "the Silk Road|the Great Depression|the Enlightenment|the American Civil War|the printing press|colonialism|"
        "the Ottoman Empire|the Meiji Restoration|women's suffrage|the Black Death|globalization|the Opium Wars|"
        "the Reformation|the Marshall Plan|existentialism|utilitarianism|supply and demand|monopolies|inflation"
    ),
    "algorithm": _split(
        "sorts a list with merge sort|finds the longest common prefix of a list of strings|checks whether a word is a "
        "palindrome|counts the vowels in a string|reverses a linked list|computes the greatest common divisor|finds "
        "prime numbers up to n|implements a binary search tree|reads a CSV file and prints column averages|finds the "
        "second largest number in an array|simulates a bank account|solves the Tower of Hanoi|merges two sorted lists|"
        "removes duplicates from a list|converts temperatures|implements a queue with two stacks|finds the shortest "
        "path in a graph|counts words in a text file|validates an email address|plays tic-tac-toe|prints Pascal's triangle"
    ),
    "language": _split("Python|Python|Python|C++|Java|JavaScript|C|Go|Rust"),
    "tone": _split("formal|friendly|funny|persuasive|poetic|concise|dramatic|inspiring|sarcastic|professional"),
    "sport": _split(
        "football world cup|rugby world cup|summer olympics|winter olympics|cricket world cup|super bowl|world series|"
        "stanley cup|champions league final|tour de france|wimbledon final|nba finals|commonwealth games|masters"
    ),
    "thing": _split(
        "telephone|steam engine|light bulb|internet|bicycle|printing press|airplane|camera|microscope|radio|television|"
        "compass|paper|penicillin|zipper|refrigerator|washing machine|submarine|x ray machine|barometer|typewriter"
    ),
    "body": _split("heart|liver|kidney|pancreas|spleen|thyroid gland|lungs|retina|cerebellum|femur|skin|small intestine"),
    "show": _split(
        "the lion king|the wizard of oz|game of thrones|friends|star wars|the godfather|breaking bad|the office|titanic|"
        "the walking dead|grey's anatomy|the matrix|home alone|the sound of music|stranger things|toy story|jaws|grease|"
        "the big bang theory|beauty and the beast|harry potter|lord of the rings|pirates of the caribbean|back to the future"
    ),
    "role": _split("the king|the doctor|the mother|the villain|jack|rose|the teacher|sarah|the captain|michael|emma|the ghost"),
    "song": _split(
        "let it be|yesterday|hotel california|amazing grace|silent night|hallelujah|imagine|happy birthday|waterloo|"
        "dancing queen|bohemian rhapsody|jolene|stand by me|my girl|sweet home alabama|take on me|purple rain|africa"
    ),
    "office": _split("president|prime minister|king|first governor|vice president|chief justice|mayor|secretary of state"),
    "dperson": _split(
        "Der Minister|Die Bundeskanzlerin|Der Sprecher der Polizei|Die Sängerin|Der Trainer|Die Regierung|Das Unternehmen|"
        "Der Bürgermeister|Die Forscherin|Ein Augenzeuge|Die Universität|Der Verein|Die Gewerkschaft|Der Präsident|"
        "Die Staatsanwaltschaft|Der Schriftsteller|Die Opposition|Ein junger Mann|Die Gemeinde|Das Gericht"
    ),
    "dverb": _split(
        "kündigte an|bestätigte|erklärte|kritisierte|teilte mit|betonte|versprach|bezweifelte|behauptete|warnte"
    ),
    "dplace": _split(
        "in Berlin|in München|am Bodensee|in der Schweiz|in Brüssel|in Hamburg|in den Vereinigten Staaten|im Schwarzwald|"
        "an der Grenze|in der Innenstadt|in Österreich|im Süden des Landes|in Peking|auf dem Flughafen|in Stuttgart"
    ),
    "dtime": _split(
        "am Montag|in der vergangenen Woche|seit dem Frühjahr|im nächsten Jahr|am frühen Morgen|nach dem Spiel|bis Ende März|"
        "vor drei Jahren|während der Krise|im Sommer 2012|am Wochenende|in den letzten Monaten|gegen 18 Uhr"
    ),
    "dclause": _split(
        "dass die Kosten weiter steigen werden|dass der Bau der Brücke länger dauert als geplant|dass viele Familien auf "
        "Hilfe angewiesen sind|dass die Wahl verschoben werden muss|dass niemand verletzt wurde|dass der Vertrag nicht "
        "verlängert wird|dass die Zahl der Besucher deutlich gesunken ist|dass neue Arbeitsplätze entstehen sollen|dass die "
        "Ermittlungen noch andauern|dass die Mannschaft gut vorbereitet ist|dass Patienten oft zu spät behandelt werden"
    ),
    "dnoun": _split(
        "Die Zahl der Unfälle|Der Preis für Benzin|Das neue Museum|Die alte Kirche|Der Umsatz|Die Ausstellung|Der Zug|"
        "Die Produktion von Autos|Das Festival|Die Temperatur|Der Verkehr|Die Nachfrage nach Wohnungen|Das Krankenhaus"
    ),
    "dstate": _split(
        "ist um {n2-40} Prozent gestiegen|wird für {n2-90} Millionen Euro saniert|war wegen eines Sturms geschlossen|"
        "zieht immer mehr Touristen an|bleibt hinter den Erwartungen zurück|soll im Herbst wieder eröffnet werden|"
        "wurde von Experten heftig kritisiert|hat sich seit 1990 verdoppelt|gehört zu den ältesten in ganz Europa"
    ),
}

CHATS = {
    "writing": _lines("""
        Write a {tone} blog post about {topic}.
        Write a short story of about {n100-400} words that begins with the sentence: "The {noun} was gone."
        Draft a {tone} email to your manager asking for {noun} and more time for the project on {topic}.
        Write a {tone} review of a restaurant in {city} that you visited last weekend.
        Imagine you are writing an article comparing two views of {topic}. Give an outline with a headline and sections.
        Describe a market in {city} early in the morning, using all the senses.
        Write a {tone} poem about {topic} and {noun}.
        Compose a travel guide for a weekend in {city} with food, museums and walks.
        Write a product description for a new {noun} that helps people with {topic}.
        Write a persuasive letter to the town council about {topic}.
        Write a news article about {topic} in {city}. Include quotes from residents and numbers.
        Edit the following paragraph and correct the grammar: "She {verb} to the {noun} yesterday and she don't like {noun} because it were to expensive."
    """.replace("{verb}", "go")),
    "roleplay": _lines("""
        Pretend to be {character}. What do you think about {topic}?
        Act as a {job}. I need advice about {topic}. What should I do first?
        You are {character} and you are visiting {city} today. Describe your day in the first person.
        Please take the role of an English {job} and explain {science} to a group of visitors.
        Imagine yourself as {character}. Answer in character: what is your opinion on {noun}?
        You are a {job} and a customer complains about {noun}. Reply in a {tone} way.
    """),
    "reasoning": _lines("""
        {name} is taller than {name}, and {name} is taller than both of them. Who is the shortest? Explain.
        If all {noun}s are {noun}s and some {noun}s are red, can we conclude that some {noun}s are red? Why?
        A farmer has {n5-30} sheep and all but {n2-4} run away. How many are left?
        Which word does not belong with the others: {noun}, {noun}, {noun}, {noun}?
        David has {n2-5} sisters. Each of them has one brother. How many brothers does David have?
        In a room there are {n2-9} people and each shakes hands once with everyone else. How many handshakes are there?
        You walk {n2-9} km north, {n2-9} km east and {n2-9} km south. How far from the start are you?
        Today is {name}'s birthday, {n2-20} days before the end of the month. What can you infer about the date?
    """),
    "math": _lines("""
        Solve for x: {n2-9}x + {n1-30} = {n31-99}.
        What is the area of a rectangle with sides {n3-40} cm and {n3-40} cm, and what is its perimeter?
        Find the probability that two dice sum to {n2-12}.
        When {n20-99} is divided by {n3-12}, what is the remainder?
        If f(x) = {n2-9}x^2 - {n1-9}x + {n1-20}, what is f({n1-6})?
        A company earns ${n1000-9000} in the first year and {n5-60}% more in the second. What is the total?
        How many integers satisfy |x - {n1-9}| < {n2-12}?
        The points ({n0-5}, {n0-5}), ({n6-9}, {n0-5}) and ({n0-9}, {n6-12}) form a triangle. What is its area?
        In a class of {n20-60} students, {n5-15} study French and {n5-15} study German, {n1-4} study both. How many study neither?
    """),
    "coding": _lines("""
        Write a {language} program that {algorithm}.
        Implement a function in {language} that {algorithm}.
        Explain what this does and improve it: a {language} function that {algorithm}.
        Write a simple website in HTML with a button that shows a random {noun}.
        Write an SQL query that lists the top {n3-10} customers by total sales of {noun}.
        Design a class in {language} for a {noun} shop and show how to use it.
    """),
    "extraction": _lines("""
        Extract all names and places from this text and return them as JSON: "{name} from {place} met {person} in {city} to talk about {topic}."
        Count how many times each word occurs: "{noun} {noun} {noun} {noun}". Answer as a list.
        Here are company results. {name} Corp: revenue ${n2-90} million, net income ${n1-9} million. {name} Ltd: revenue ${n2-90} million, net income ${n1-9} million. Which has the higher margin?
        Classify each review from 1 to 5: 1. "The {noun} was wonderful." 2. "I never want to see a {noun} again." 3. "The {noun} was fine."
        From the following list, pick the items that are related to {topic}: {noun}, {noun}, {noun}, {noun}, {noun}.
        Given these records, sort them by age: {name} ({n18-80}, {job}), {name} ({n18-80}, {job}), {name} ({n18-80}, {job}).
    """),
    "stem": _lines("""
        Explain {science} and give an everyday example.
        What is the relationship between {science} and {science}?
        How does {science} work? Describe the process step by step.
        What are the main differences between {science} and {science}?
        Describe an experiment that shows {science}. What equipment is needed?
        What is {noun} and why is it important?
        A ball is thrown upward at {n5-40} m/s. How high does it rise? Explain the physics.
    """),
    "humanities": _lines("""
        What were the causes and consequences of {history}?
        Explain how {history} influenced {topic}.
        Compare {history} with {history}.
        Discuss the ethics of {topic}. What would a philosopher say?
        Give three arguments for and against {topic}.
        How should one teach {history} to teenagers? Propose a lesson plan.
        Who was {person} and why is this person remembered?
        Tell me about {place}: its history, geography and culture.
    """),
    "everyday": _lines("""
        What are some good ways to improve my {noun}?
        Give me {n3-10} tips for {topic}.
        Can you recommend a plan for learning about {history}?
        How do I cook a simple dinner with {noun} and {noun}?
        What should I pack for a trip to {city}?
        Hi, how are you? Can you tell me something about {topic}?
        Explain {topic} to a five-year-old.
        What is the meaning of the word "{noun}"? Use it in {n2-6} sentences.
    """),
}

FOLLOW_UPS = {
    "writing": _lines("""
        Now make it shorter and more {tone}.
        Rewrite it so that every sentence starts with the letter {n1-9}.
        Give it a title and a new ending.
        Can you rewrite your answer as a poem?
        Critique your own text and list its weaknesses.
    """),
    "roleplay": _lines("""
        What do you like to eat for breakfast?
        Now tell me what you fear most.
        Can you teach me something useful about {topic}?
        Do you want to travel to {city} with me?
    """),
    "reasoning": _lines("""
        What if the first statement were false?
        Explain your reasoning step by step.
        Now change the number to {n3-30}. What is the answer?
    """),
    "math": _lines("""
        Now double every number. What is the result?
        What if we add {n2-20} to the answer?
        Check your answer and explain each step.
    """),
    "coding": _lines("""
        Can you make it faster?
        Add comments and error handling to the code.
        Now write it in {language}.
        Write tests for this code.
    """),
    "extraction": _lines("""
        Now add one more item, {noun}, and answer again.
        Return the result as a table instead.
        Which of them is the most important? Explain.
    """),
    "stem": _lines("""
        What assumptions did you make? Are they valid?
        Explain it again in simpler words.
        What are the limits of this explanation?
        How is this used in industry?
    """),
    "humanities": _lines("""
        Explain it again as if I were ten years old.
        Write a short poem that illustrates this.
        What would someone who disagrees say?
        Give more details about the second point.
    """),
    "everyday": _lines("""
        Which of these would you choose and why?
        Give me a plan for one week.
        Tell me more about the last one.
    """),
    "any": _lines("""
        Can you give an example?
        Summarize your answer in two sentences.
    """),
}

ARTICLES = _lines("""
    Write a long newspaper report about a {noun} in {city}. Name the people involved, with ages, jobs and quotes.
    Write a detailed news story: police in {place} investigate a case of {noun}. Include dates, witnesses and statements.
    Write a long sports report about the {sport} in {city}, with players, scores and comments by the coach.
    Write a long news article about a family from {place} and their {noun}. Use quotes and numbers.
    Write a long news article about a politician from {place} who is criticised because of {topic}.
    Write an encyclopedia article about {person}, with sections on life, work and legacy.
    Write an encyclopedia article about {place}, with history, geography, population and economy.
    Write a long encyclopedia article about {science}.
    Write a long business report about a company from {city} that sells {item}, with figures and the opinion of analysts.
    Write the plot summary and the cast of a film about {noun} in {city}.
    Write a long article about a study by researchers in {place} on {topic}. Quote the researchers.
    Write a long article about {history}, with names, dates and places.
""")

QUESTIONS = _lines("""
    who was {person}
    where is {place} located
    when was {person} born
    what is {person} famous for
    who invented the {thing}
    when was the {thing} invented
    who plays {role} in {show}
    who played {role} in {show}
    when did {show} first come out
    who wrote the song {song}
    who sings {song}
    what year did {song} come out
    where was the {n1960-2018} {sport} held
    who won the {sport} in {n1960-2018}
    how many times has {place} won the {sport}
    where is the {body} located in the body
    what is the function of the {body}
    who was the {office} of {place} in {n1800-2018}
    what is the capital of {place}
    what is the population of {place}
    when did the {event} take place
    who won the {event}
    what does {noun} mean
    what is the difference between {noun} and {noun}
    where does the word {noun} come from
    how many seasons of {show} are there
    where was {show} filmed
    who directed {show}
    what is the name of the {noun} in {show}
    how long does it take to fly from {city} to {city}
    what type of {noun} is used for {noun}
    who is the author of {person}
    which country has the largest {noun} in the world
    when did {place} become independent
    what is the main cause of {noun}
    how did {person} die
    who was the first person to reach {place}
    what is the purpose of {noun}
    who discovered {noun}
    what are the main ingredients of {noun}
""")

PASSAGE_ARTICLES = _lines("""
    Write a long newspaper report about a {noun} in {city}. Name the people involved, with ages, jobs and quotes.
    Write a detailed news story: police in {place} investigate a case of {noun}. Include dates, witnesses and statements.
    Write a long sports report about the {sport} in {city}, with players, scores and comments by the coach.
    Write a long news article about a family from {place} and their {noun}. Use quotes and numbers.
    Write a long news article about a politician from {place} who is criticised because of {topic}.
    Write an encyclopedia article about {person}, with sections on life, work and legacy.
    Write an encyclopedia article about {place}, with history, geography, population and economy.
    Write a long encyclopedia article about {science}.
    Write a long business report about a company from {city} that sells {item}, with figures and the opinion of analysts.
    Write the plot summary and the cast of a film about {noun} in {city}.
    Write a long article about a study by researchers in {place} on {topic}. Quote the researchers.
    Write a long article about {history}, with names, dates and places.
""")

QUESTIONS = _lines("""
    what is {}?
    What does the text say about {}?
    who is {}?
    when did {} happen?
    where is {} mentioned?
    why is {} important?
    How is {} described?
    what is the meaning of {}?
    How many kinds of {} are there?
    who was responsible for {}?
    What is the relation between {} and the rest?
    which of them is related to {}?
""")

PROBLEMS = _lines("""
    {A} has {n5-60} {item} and buys {n2-30} more. {A} then gives {n2-15} to {B}. How many {item} does {A} have left?
    {A} sells {item} for ${n2-20} each. On Monday {A} sold {n5-60} and on Tuesday twice as many. How much money did {A} earn in total?
    A box holds {n4-24} {item}. {A} has {n3-20} boxes and {B} has {n3-20} boxes. How many {item} do they have together?
    {A} runs {n2-12} miles every day for {n2-6} weeks. {B} runs half as far. How many miles do they run altogether?
    {A} earns ${n10-40} per hour and works {n4-10} hours a day, {n3-6} days a week. How much does {A} earn in {n2-8} weeks?
    A shop gives a {n5-50}% discount on {item} that cost ${n20-200}. How much does {A} pay for {n2-9} of them?
    {A} is {n3-20} years older than {B}. In {n2-10} years the sum of their ages will be {n40-90}. How old is {A} now?
    {A} read {n10-60} pages on Saturday and {n2-4} times as many on Sunday. The book has {n200-500} pages. How many pages are left?
    There are {n20-90} students on a bus. At the first stop {n2-15} get off and {n2-15} get on. At the second stop half of the students get off. How many are on the bus now?
    {A} bakes {n2-9} trays of {n6-24} cookies. {B} eats {n2-12} of them, and the rest are packed in bags of {n2-6}. How many bags are needed?
    A train travels at {n40-120} miles per hour for {n2-8} hours, then at {n30-90} miles per hour for {n2-5} hours. How far does it go?
    {A} has ${n50-300}. {A} spends one fourth of it on {item} and ${n5-30} on lunch. How much money is left?
    {A} plants {n3-15} rows of {n4-20} flowers. {n2-30} of them die. How many flowers are there now?
    {A} and {B} share {n20-120} {item} in the ratio {n1-4}:{n1-5}. How many does {B} get?
    Each of the {n3-12} children needs {n2-8} {item}. A pack of {n4-12} {item} costs ${n2-15}. How much does {A} have to spend?
    {A} saves ${n5-50} every month. After {n4-18} months {A} buys a bicycle for ${n60-300}. How much money does {A} still have or need?
    A tank holds {n50-400} gallons of water. It leaks {n2-9} gallons every hour and {A} adds {n10-30} gallons every {n2-6} hours. How much water is in it after {n6-24} hours?
    {A} has three times as many {item} as {B}. Together they have {n20-200} {item}. How many {item} does {A} have?
    {A} takes {n10-60} minutes to walk to school and {n5-20} minutes by bus. How many minutes are saved in {n2-10} days if {A} takes the bus both ways?
    A recipe for {n2-8} people needs {n2-6} cups of flour. {A} wants to cook for {n9-40} people. How many cups of flour are needed?
    {A} scored {n60-95}, {n60-95} and {n60-95} on three tests. What must {A} score on the fourth test to have an average of {n75-92}?
    {A} orders {n2-6} pizzas with {n6-12} slices each for {n4-12} friends. If everyone eats {n1-4} slices, how many slices are left?
    {A} weighs {n100-220} pounds and loses {n1-4} pounds a week for {n4-20} weeks, then gains back {n2-9} pounds. What is the final weight?
    A farmer has {n10-80} cows and {n2-5} times as many chickens. How many legs do the animals have altogether?
    {A} works {n4-10} hours on weekdays and {n2-6} hours on Saturday. If {A} is paid ${n10-30} per hour, how much does {A} earn in one week?
""")

GERMAN = _lines("""
    {dperson} {dverb} {dtime}, {dclause}.
    {dnoun} {dplace} {dstate}.
    Wie {dtime} bekannt wurde, {dstate2}.
    {dperson} hat {dtime} {dplace} gesagt, {dclause}.
    {dnoun} {dstate}, obwohl {dtime} {dplace} noch alles anders aussah.
    "Wir wissen, {dclause}", so {dperson} {dplace}.
    {dperson} war {dtime} {dplace} zu Gast und {dverb}, {dclause}.
    Vor allem {dplace} {dverb2} die Menschen, {dclause}.
    Insgesamt {n2-90} Personen wurden {dtime} {dplace} befragt.
    {dtime2} kamen rund {n2-90}000 Besucher, um {dplace} zu feiern.
""")
SLOTS["dstate2"] = _split("war das Gebäude seit Jahren leer|fehlen dem Verein mehrere Millionen|wird die Straße gesperrt")
SLOTS["dverb2"] = _split("glauben|fürchten|hoffen|sagen")
SLOTS["dtime2"] = [value[0].upper() + value[1:] for value in SLOTS["dtime"]]
