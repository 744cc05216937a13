// What a search shows first: a title with the word, then a function of that name, then prose.
var Scorer = { objNameMatch: 11, objPartialMatch: 6, objPrio: { 0: 15, 1: 5, 2: -5 }, objPrioDefault: 0,
  title: 20, partialTitle: 7, term: 5, partialTerm: 2 };
