"""All arithmetic kinds: word problems, bare arithmetic, number games, units. KINDS: name -> (weight, maker)."""

from chat_makers import arithmetic_bare, arithmetic_measures, number_games, word_problems

KINDS = word_problems.KINDS | arithmetic_bare.KINDS | number_games.KINDS | arithmetic_measures.KINDS
