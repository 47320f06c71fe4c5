import BackgroundTasks
import Foundation

/// One step of an update, when iOS finds the time: at night, on power, with a network.
///
/// `step` calls the SDK in Python (`phone.step`, by the bridge of the app), or the app's own code over `Wpatch`.
/// iOS may end the task at any moment: the SDK goes on at the next one, from the chunk where it was.
enum Update {
    static let identifier = "com.example.autoglm.update"

    /// Call before the app has finished launching; the identifier stands in Info.plist.
    static func register(step: @escaping (_ stop: @escaping () -> Bool) -> Bool) {
        BGTaskScheduler.shared.register(forTaskWithIdentifier: identifier, using: nil) { task in
            schedule()
            let stopped = Flag()
            task.expirationHandler = { stopped.raise() }
            task.setTaskCompleted(success: step { stopped.isRaised })
        }
    }

    /// Call whenever the app goes to the background.
    static func schedule() {
        let request = BGProcessingTaskRequest(identifier: identifier)
        request.requiresNetworkConnectivity = true
        request.requiresExternalPower = true
        request.earliestBeginDate = Date(timeIntervalSinceNow: 6 * 3600)
        try? BGTaskScheduler.shared.submit(request)
    }
}

/// Raised by the system's thread, read by the task's.
final class Flag: @unchecked Sendable {
    private let lock = NSLock()
    private var value = false

    func raise() {
        lock.lock()
        value = true
        lock.unlock()
    }

    var isRaised: Bool {
        lock.lock()
        defer { lock.unlock() }
        return value
    }
}
