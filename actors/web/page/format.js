// Numbers, sizes, durations and times as people read them.

export const whole = new Intl.NumberFormat("en");

export function count(n) {
  return n < 10 && n % 1 ? n.toFixed(1) : whole.format(Math.round(n));
}

export function short(n) {
  for (const [size, unit] of [[1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
    if (n >= size) return `${+(n / (unit === "k" ? 1e3 : size)).toFixed(1)}${unit}`;
  }
  return count(n);
}

export function bytes(n) {
  let unit = 0;
  for (; n >= 1024 && unit < 4; unit += 1) n /= 1024;
  return `${n >= 9.95 || n % 1 === 0 ? Math.round(n) : n.toFixed(1)} ${["B", "kB", "MB", "GB", "TB"][unit]}`;
}

export function duration(s) {
  if (s < 1) return `${Math.max(0, Math.round(s * 1000))} ms`;
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 120) return `${Math.round(s)} s`;
  if (s < 7200) return `${Math.round(s / 60)} min`;
  if (s < 172800) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86400)} d`;
}

export const milliseconds = (ms) =>
  ms === null ? "–" : ms >= 1000 ? `${+(ms / 1000).toFixed(2)} s` : `${+ms.toFixed(ms < 10 ? 1 : 0)} ms`;

export const ago = (then, now) => (!then ? "never" : now - then < 2 ? "just now" : `${duration(now - then)} ago`);

// The age of a figure that was looked up, once it is worth saying: " (12 s ago)", or nothing
export const seen = (at, now) => (at && now - at > 5 ? ` (${duration(now - at)} ago)` : "");

// ---- times, in the zone that the person has chosen: "UTC", or undefined for the browser's own

let zone;
let formats = {};

export function setZone(chosen) {
  zone = chosen;
  formats = {};
}

function formatted(name, options, unixSeconds) {
  formats[name] ??= new Intl.DateTimeFormat("en-GB", { ...options, hour12: false, timeZone: zone });
  return formats[name].format(new Date(unixSeconds * 1000));
}

export function clock(unixSeconds, seconds) {
  const options = { hour: "2-digit", minute: "2-digit", ...(seconds ? { second: "2-digit" } : {}) };
  return formatted(seconds ? "seconds" : "minutes", options, unixSeconds);
}

// A date and a time to the millisecond; today's date is left out
export function moment(unixSeconds, nowSeconds) {
  const day = { day: "2-digit", month: "short", year: "numeric" };
  const time = formatted("moment", { hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3 }, unixSeconds);
  const date = formatted("day", day, unixSeconds);
  return nowSeconds && date === formatted("day", day, nowSeconds) ? time : `${date}, ${time}`;
}
