/** The clock by which a replica waits. Tests without servers let it run faster. */
export const clock = {
  /** Seconds of this clock in a second of the world's. */
  speed: 1,
  /** Milliseconds since some moment. */
  now: () => performance.now() * clock.speed,
};
