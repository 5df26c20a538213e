// Takes the sound of the microphone, plays enhanced samples from a queue, and posts both as they are taken and as they
// leave the queue. Where more waits than playback needs, as after the model was late, the rest is left out of playback.
"use strict"
const PIECE = 512  // samples that are posted at a time
const AHEAD = [0.06, 0.5] // seconds of enhanced sound with which playback begins, and at most after gaps

class Live extends AudioWorkletProcessor {
  constructor() {
    super()
    this.queue = []
    this.waiting = 0  // samples in the queue
    this.least = Infinity  // and in the present second
    this.second = 0
    this.ahead = AHEAD[0] * sampleRate
    this.gaps = 0
    this.skipped = 0
    this.playing = this.ended = false
    this.taking = true
    this.taken = []  // samples that have not been posted
    this.left = []
    this.port.onmessage = ({ data }) => {
      if (data === "stop") { this.taking = false; this.post({ stopped: true }) }
      else if (data === "end") this.ended = true
      else { this.queue.push(data); this.waiting += data.length }
    }
  }

  post(more) {
    const { waiting, gaps, skipped } = this
    const taken = Float32Array.from(this.taken.splice(0)), left = Float32Array.from(this.left.splice(0))
    this.port.postMessage({ taken, left, waiting, gaps, skipped, ...more })
  }

  next(most) {
    const [piece, ...others] = this.queue, now = piece.subarray(0, most)
    this.queue = now.length < piece.length ? [piece.subarray(most), ...others] : others
    this.waiting -= now.length
    this.left.push(...now)
    return now
  }

  process([[microphone]], [[output]]) {
    if (this.taking && microphone) this.taken.push(...microphone)
    if (this.ended || this.waiting >= this.ahead) this.playing = true
    for (let place = 0; this.playing && place < output.length;) {
      if (this.queue.length) {
        const now = this.next(output.length - place)
        output.set(now, place)
        place += now.length
      } else {
        this.playing = false
        if (this.ended || !this.taking) break
        this.gaps += 1
        this.ahead = Math.min(1.5 * this.ahead, AHEAD[1] * sampleRate)
      }
    }
    this.least = Math.min(this.least, this.waiting)
    this.second += output.length
    if (this.second >= sampleRate) {
      for (let more = this.least > 2 * this.ahead ? this.least - this.ahead : 0; more >= 1;) {
        const { length } = this.next(Math.min(more, PIECE))
        this.skipped += length
        more -= length
      }
      this.least = Infinity
      this.second = 0
    }
    const done = this.ended && !this.queue.length
    if (done || this.taken.length >= PIECE || this.left.length >= PIECE) this.post({ done })
    return !done
  }
}
registerProcessor("live", Live)
