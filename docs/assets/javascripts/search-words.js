/*
 * Rewrite search queries. The theme completes every word, so "a" matches all words that begin with an a.
 * Here short common words are left out, endings are cut off, and a whole word counts more than a beginning.
 */
(() => {
  const QUERY = 2; // The theme's SearchMessageType.QUERY
  const COMMON = new Set(
    ("a an and are as at be by can do does for from get have how i if in is it its me my not of on or our per " +
      "should so than that the their this to use using was we what when where which who why will with you your").split(" "),
  );

  function stem(word) {
    return word
      .replace(/^(.{3,}(?:x|ch|sh|ss))es$/, "$1")
      .replace(/^(.{2,}[^suia])s$/, "$1")
      .replace(/^(.{4,})(?:ing|ed)$/, "$1");
  }

  function rewrite(query) {
    if (/["+~^*:]|(^|\s)-/.test(query)) return query; // The reader uses the syntax of the search.
    const words = query.toLowerCase().split(/[\s,.?!/-]+/).filter((word) => word && !COMMON.has(word));
    return words.length ? words.map(stem).map((word) => `${word}^2 ${word}`).join(" ") : query;
  }

  const { postMessage } = Worker.prototype;
  Worker.prototype.postMessage = function (message, ...rest) {
    const query = message?.type === QUERY ? { ...message, data: rewrite(message.data) } : message;
    return postMessage.call(this, query, ...rest);
  };
})();
