// Figures as people read them.

/** 1.4 kB, 20 MB; decimal, as network tools count. */
export function bytes(count) {
  if (count === undefined || count === null) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let value = count;
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${value.toFixed(unit && value < 99.5 ? 1 : 0)} ${units[unit]}`;
}

/** 8.1 ms, 120 ms, 3.2 s. */
export function milliseconds(ms) {
  if (ms === undefined || ms === null) return "–";
  if (ms >= 10_000) return `${(ms / 1000).toFixed(0)} s`;
  if (ms >= 1000) return `${(ms / 1000).toFixed(1)} s`;
  return `${ms.toFixed(ms < 10 ? 1 : 0)} ms`;
}

/** 12 s, 4 min, 3 h 20 min, 2 days. */
export function duration(seconds) {
  if (seconds === undefined || seconds === null) return "–";
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} days`;
}

export function percent(share) {
  return `${Math.round(100 * share)} %`;
}

/** Today, Yesterday, Last 7 days, Earlier. */
export function period(time, now = Date.now()) {
  const midnight = new Date(now).setHours(0, 0, 0, 0);
  if (time >= midnight) return "Today";
  if (time >= midnight - 86_400_000) return "Yesterday";
  if (time >= midnight - 6 * 86_400_000) return "Last 7 days";
  return "Earlier";
}
