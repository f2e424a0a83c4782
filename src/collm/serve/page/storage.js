// Small things kept in this browser: `kept.local` for good, `kept.session` as long as the tab.
//
// Where site data is blocked, the very names localStorage and sessionStorage throw: then they last
// as long as the page. Not a module: theme.js needs it before the first paint.
globalThis.kept = (() => {
  function storage(name) {
    const memory = new Map(); // what the browser did not take
    return {
      /** What was kept under `key`, or null. */
      get(key) {
        if (memory.has(key)) return memory.get(key);
        try {
          return globalThis[name].getItem(key);
        } catch {
          return null;
        }
      },

      /** Keep a text; null: forget it. */
      set(key, value) {
        memory.delete(key);
        try {
          if (value === null) globalThis[name].removeItem(key);
          else globalThis[name].setItem(key, value);
        } catch {
          memory.set(key, value);
        }
      },
    };
  }

  return { local: storage("localStorage"), session: storage("sessionStorage") };
})();
